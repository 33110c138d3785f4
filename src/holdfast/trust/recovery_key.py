"""A VM's recovery key: 256 bits that a person can keep on paper and type in again.

Eight groups of seven characters of Crockford's Base 32 (no I, L, O, U): the key and, at its end, 24 bits
of its SHA-256, so that a slip of the pen is told from a wrong key. What opens the VM's state key is
derived from it by HKDF-SHA-256 (RFC 5869); a key of 256 random bits needs no stretching.
"""

import hashlib
import secrets

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast.spec.errors import InvalidInput

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ALIKE = str.maketrans({"I": "1", "L": "1", "O": "0"})
_BYTES = 32
_CHECK = 3
_DIGITS = (_BYTES + _CHECK) * 8 // 5
_GROUP = 7


class RecoveryKeyMistyped(InvalidInput):
    id = "recovery-key-mistyped"


def new_recovery_key() -> bytes:
    return secrets.token_bytes(_BYTES)


def written(key: bytes) -> str:
    """As it is shown: `XXXXXXX-XXXXXXX-...`."""
    number = int.from_bytes(key + _check(key), "big")
    digits = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_DIGITS)))
    return "-".join(digits[at : at + _GROUP] for at in range(0, _DIGITS, _GROUP))


def read(text: str) -> bytes:
    """The key that a person typed: case, blanks and hyphens do not matter, I and L are 1, O is 0.

    Raises:
        RecoveryKeyMistyped: it is none. The error does not repeat what was typed.
    """
    digits = "".join(text.upper().replace("-", " ").split()).translate(_ALIKE)
    if len(digits) != _DIGITS or any(each not in _ALPHABET for each in digits):
        raise _mistyped(f"a recovery key has 8 groups of 7 characters; {len(digits)} characters were given")
    number = 0
    for each in digits:
        number = number << 5 | _ALPHABET.index(each)
    whole = number.to_bytes(_BYTES + _CHECK, "big")
    key = whole[:_BYTES]
    if whole[_BYTES:] != _check(key):
        raise _mistyped("the recovery key is mistyped: its last characters do not fit the others")
    return key


def wrapping_key(key: bytes, vm_id: str) -> bytes:
    """The AES-256 key by which the state key of this VM is wrapped for recovery."""
    derive = HKDF(hashes.SHA256(), 32, salt=None, info=f"holdfast recovery {vm_id}".encode())
    return derive.derive(key)


def _check(key: bytes) -> bytes:
    return hashlib.sha256(b"holdfast recovery key\0" + key).digest()[:_CHECK]


def _mistyped(message: str) -> RecoveryKeyMistyped:
    return RecoveryKeyMistyped(message, cure="Compare it with what was noted, and type it again.")
