"""The receiver's side on disk: bases, a journal of cycles, and the points in it that can be opened."""
