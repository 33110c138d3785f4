"""The recipient's side of an import: the private key opens the content key here and is sent nowhere."""

from pathlib import Path

from holdfast.spec.errors import InvalidInput
from holdfast.trust.bounded import read_bounded
from holdfast.trust.envelope import LONGEST, Slot, parse
from holdfast.trust.protection import RecipientOpener

_LONGEST_KEY = 64 * 1024


class CannotReadFile(InvalidInput):
    id = "cannot-read-file"


def content_key(container: Path, private_key: Path) -> str:
    """64 hexadecimal digits, for `StateImport.content_key`.

    Raises:
        CannotReadFile: one of the two files cannot be read.
        FirmwareStateDamaged, BadRecipient, LockedForAnother
    """
    taken = parse(_read(container, LONGEST))
    return content_key_of_slot(taken.slot, taken.bound, private_key)


def content_key_of_slot(slot: Slot, bound: bytes, private_key: Path) -> str:
    """Of a container that lies elsewhere. Raises as `content_key`."""
    opener = RecipientOpener.of_pem(_read(private_key, _LONGEST_KEY))
    return opener.unwrap(slot, bound).hex()


def _read(path: Path, most: int) -> bytes:
    try:
        return read_bounded(path.expanduser().resolve(), most)
    except OSError as error:
        raise CannotReadFile(
            f"{str(path)!r} cannot be read: {error.strerror}", value=str(path), cure="Check the path."
        ) from error
