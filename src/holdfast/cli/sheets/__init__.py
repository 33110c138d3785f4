"""One thing as people read it: a title and a value a line, and small tables under headings.

Pure: wire forms in, lines out. JSON output never passes here.
"""
