"""Files named on the command line become images under a name made of their content."""

from pathlib import Path
from typing import Any

from holdfast.cli.output import say
from holdfast.spec.errors import InvalidInput

_LARGEST_IN_REQUEST = 1024**2
"""Bytes; a larger file is none that fits, and the daemon says so."""


class NoSuchFile(InvalidInput):
    id = "no-such-file"


def import_file(client: Any, path: Path, kind: str | None, name: str | None = None) -> dict[str, Any]:
    """Send the file and begin its import; the Operation in wire form."""
    if not path.is_file():
        raise NoSuchFile(f"{str(path)!r} is not a file", value=str(path), cure="Check the path.")
    say(f"Sending {path.name}")
    upload = client.upload(path)
    body = {
        "upload": upload.id,
        "name": name or f"{kind or 'file'}-{upload.sha256[:16]}",
        "kind": kind,
        "source": path.name[:255],
    }
    wire: dict[str, Any] = client.wire("POST", "/v1/images/import", body)
    return wire


def image_of(client: Any, text: str, kind: str) -> str:
    """The image that `text` means: a file that exists here, else a name for the daemon to find."""
    from holdfast.spec.errors import RemoteError
    from holdfast.spec.operation import Operation

    path = Path(text).expanduser()
    if not path.is_file():
        if "/" in text:
            raise NoSuchFile(f"{text!r} is not a file", value=text, cure="Check the path.")
        return text
    wire = import_file(client, path, kind)
    last = Operation.model_validate(wire)
    for last in client.follow(last):  # noqa: B007, B020
        pass
    if last.error:
        raise RemoteError(last.error)
    return str(wire["subject"])


def text_of(text: str) -> str:
    """The content of a file, or the text itself where it names none."""
    path = Path(text).expanduser()
    try:
        return path.read_text().strip() if path.is_file() else text
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchFile(f"{text!r} cannot be read as text", value=text) from error


def base64_of(path: Path) -> str:
    """A small file's content for a request. Raises NoSuchFile."""
    import base64

    try:
        with path.expanduser().open("rb") as file:
            return base64.b64encode(file.read(_LARGEST_IN_REQUEST)).decode()
    except OSError as error:
        raise NoSuchFile(
            f"{str(path)!r} cannot be read: {error.strerror}", value=str(path), cure="Check the path."
        ) from error
