"""Files of an export, fetched from the daemon with progress."""

import os
import sys
from pathlib import Path
from typing import Any

from holdfast.cli.writing import not_written


def fetch_all(client: Any, export: str, files: dict[str, int], folder: Path) -> None:
    """Write every file of an export into a folder. Raises FileNotWritten, and as the client does."""
    from holdfast.spec.units import format_size

    total, done = sum(files.values()), 0
    live = sys.stderr.isatty()
    for name in sorted(files):
        path = folder / Path(name).name
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                for chunk in client.chunks(f"/v1/exports/{export}/{name}"):
                    file.write(chunk)
                    done += len(chunk)
                    if live:
                        sys.stderr.write(f"\r\x1b[K{name}: {format_size(done)} of {format_size(total)}")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise not_written(path, error) from error
    if live:
        sys.stderr.write("\r\x1b[K")
