"""The one lock of what a host key wraps: keys of vTPMs, and containers that stay on this host.

A rotation reads such a file and writes it again under another key. Whoever writes, removes or replaces
one holds this lock meanwhile (from the reading on, where the new content follows from the old), so that
no rotation brings back what was replaced or removed. It is held for a few file operations, in threads,
never across an await; one daemon owns the state folder, so a lock of the process is enough.
"""

import threading

changing = threading.RLock()
