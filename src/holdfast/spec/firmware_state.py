"""Words of firmware state and its keys, as API and command line carry them.

Secrets are `SecretStr`: they show themselves in no log and no error.
"""

from enum import StrEnum

from pydantic import Field, SecretStr

from holdfast.spec.model import Frozen


class HostKeyKind(StrEnum):
    """What keeps the host key."""

    FILE = "file"
    """A file that root alone may read."""
    TPM = "tpm"
    """The host's TPM, which releases it in the boot state that it was sealed in."""


class HostKeyFacts(Frozen):
    """How this host keeps its key, for the host check."""

    kind: HostKeyKind | None
    """None: no key was needed yet."""
    tpm: bool
    """The daemon has a TPM of this host to seal in."""
    problem: str = ""
    """Why the key is not to be had now; empty: it opens."""
    cure: str = ""


class HostKeyRotate(Frozen):
    to: HostKeyKind | None = None
    """None: the TPM where the host has one that can be used, else a file."""


class HostKeyRotation(Frozen):
    kind: HostKeyKind
    """What keeps the new key."""
    id: str
    """16 hexadecimal digits made from the key; they tell keys apart and nothing of the key."""
    words: str
    """What the kind means, for people."""
    rewrapped: int
    """How many VMs' keys were wrapped anew."""
    unreadable: tuple[str, ...] = ()
    """VMs whose key opens under none of the host keys at hand; a recovery key brings each back."""
    earlier: tuple[str, ...] = ()
    """Keys before it that are kept, since something is still wrapped by them."""


class RecoveryKeyRequest(Frozen):
    new: bool = False
    """Make one in place of the one that there is, which then opens nothing any more."""


class RecoveryKey(Frozen):
    """Shown once; Holdfast keeps only what it opens."""

    vm: str
    recovery_key: str


class Recover(Frozen):
    recovery_key: SecretStr


class StateExport(Frozen):
    """Exactly one of the two says for whom the state is encrypted."""

    passphrase: SecretStr | None = None
    recipient: str | None = Field(default=None, max_length=16 * 1024)
    """A public key (X25519, P-256 or RSA) or a certificate with one, as PEM."""


class StateImport(Frozen):
    upload: str = Field(max_length=64)
    passphrase: SecretStr | None = None
    content_key: SecretStr | None = None
    """64 hexadecimal digits: what the recipient's private key, which stays with its owner, opened."""
    same_tpm: bool = False
    """Take over the TPM identity of another VM."""
