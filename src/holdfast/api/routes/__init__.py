"""The routes, a file for each kind of thing; all stand under /v1."""
