"""Files that the command line writes for people, whole or not at all."""

import contextlib
import os
from pathlib import Path

from holdfast.spec.errors import InvalidInput


class FileExists(InvalidInput):
    id = "file-exists"


class FileNotWritten(InvalidInput):
    id = "file-not-written"


def write_new(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read; one that exists is left alone.

    Raises:
        FileExists: it does.
        FileNotWritten: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise FileExists(f"{str(path)!r} exists", value=str(path), cure="Name another file.") from error
    except OSError as error:
        raise not_written(path, error) from error
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> FileNotWritten:
    return FileNotWritten(
        f"{str(path)!r} cannot be written: {error.strerror}", value=str(path), cure="Name another file."
    )
