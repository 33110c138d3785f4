"""The command line. `cli/vm/start.py` is `holdfast vm start`. Speaks the API client only."""
