"""Image formats, one module each: how a file is recognized and what its headers promise."""
