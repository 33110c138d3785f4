"""The end of a log, read backwards in bounds: logs may be large and their content hostile."""

from pathlib import Path

_MOST = 256 * 1024


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of at most 256 KiB; empty where there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MOST))
            data = file.read(_MOST)
    except FileNotFoundError:
        return []
    text = data.decode(errors="replace").splitlines()
    return [line[:2000] for line in text[-lines:]]
