"""Real evidence of a booted Debian guest, logs changed from it, and a TPM in software that quotes them.

`evidence/debian.log` is the log of a guest as its kernel showed it (OVMF, shim 16.1, GRUB 2.06, Linux
6.1.192). The quotes beside it are swtpm's, over PCRs that were extended with the log's digests.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from holdfast.spec.trust import BOOT_PCRS, Bank
from holdfast.trust.event_log import parse_log, replay
from holdfast.trust.tpm.wire import sized, u8, u16, u32
from holdfast.trust.verdict import Evidence

FOLDER = Path(__file__).parent / "evidence"
LOG = (FOLDER / "debian.log").read_bytes()
NONCE = bytes(range(32))
# Events of the log that tests change.
SECURE_BOOT, PK, DB, DBX, SEPARATOR_7 = 4, 5, 7, 8, 9
MICROSOFT, SHIM, SBAT, MOK_TRUSTED, DEBIAN = 22, 24, 27, 28, 29
GRUB, MENU, TIMEOUT, KERNEL, KERNEL_AGAIN, COMMAND_LINE, INITRD = 30, 39, 40, 48, 49, 50, 52
RESTRICTED_SIGNING = 0x0005_0072


def real(scheme: str = "ecdsa") -> Evidence:
    """The log with swtpm's own quote."""
    read = {each: (FOLDER / f"{scheme}.{each}").read_bytes() for each in ("key", "attest", "signature")}
    return Evidence(read["key"], NONCE, read["attest"], read["signature"], LOG)


@dataclass
class Entry:
    pcr: int
    kind: int
    digest: bytes
    data: bytes


def draft(log: bytes = LOG) -> list[Entry]:
    """A log's events, to be changed; the first is event 1. Of SHA-256 only."""
    return [
        Entry(event.pcr, event.kind, event.digests[Bank.SHA256], event.data)
        for event in parse_log(log).events
    ]


def header(algorithms: Mapping[int, int] = {11: 32}) -> bytes:
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms))
    spec += b"".join(struct.pack("<HH", *pair) for pair in algorithms.items()) + b"\0"
    return struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec


def written(entries: list[Entry]) -> bytes:
    return header() + b"".join(
        struct.pack("<IIIH", each.pcr, each.kind, 1, 11)
        + each.digest
        + struct.pack("<I", len(each.data))
        + each.data
        for each in entries
    )


def measured(pcr: int, kind: int, data: bytes) -> Entry:
    """An event whose digest is that of its data."""
    return Entry(pcr, kind, hashlib.sha256(data).digest(), data)


def changed(number: int, digest: bytes | None = None, data: bytes | None = None) -> bytes:
    """The real log with one event changed. Data alone are measured anew, as an honest firmware would."""
    entries = draft()
    entry = entries[number - 1]
    entry.data = entry.data if data is None else data
    entry.digest = digest or hashlib.sha256(entry.data).digest()
    return written(entries)


def variable(number: int, content: bytes) -> bytes:
    """The data of an event of a variable, with another content."""
    data = draft()[number - 1].data
    vendor, name_length, _ = struct.unpack_from("<16sQQ", data)
    return (
        struct.pack("<16sQQ", vendor, name_length, len(content)) + data[32 : 32 + 2 * name_length] + content
    )


@dataclass
class SoftTpm:
    """Signs quotes as a TPM would, of any PCRs: the clock and counters are made up."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    pss: bool = False
    attributes: int = RESTRICTED_SIGNING

    @property
    def public_area(self) -> bytes:
        public = self.key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            head = u16(1) + u16(11) + u32(self.attributes) + sized(b"") + u16(16)
            head += u16(0x16 if self.pss else 0x14) + u16(11) + u16(public.key_size) + u32(0)
            return head + sized(public.public_numbers().n.to_bytes(public.key_size // 8, "big"))
        numbers = public.public_numbers()
        head = u16(0x23) + u16(11) + u32(self.attributes) + sized(b"") + u16(16) + u16(0x18) + u16(11)
        points = (sized(each.to_bytes(32, "big")) for each in (numbers.x, numbers.y))
        return head + u16(3) + u16(16) + b"".join(points)

    def attest(
        self,
        pcrs: Mapping[int, bytes],
        nonce: bytes = NONCE,
        bank: int = 11,
        magic: int = 0xFF54_4347,
        kind: int = 0x8018,
    ) -> bytes:
        bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        digest = hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()
        clock = bytes(8) + u32(7) + u32(0) + u8(1)
        head = u32(magic) + u16(kind) + sized(b"\0\x0b" + bytes(32)) + sized(nonce) + clock + bytes(8)
        return head + u32(1) + u16(bank) + u8(3) + bits + sized(digest)

    def sign(self, attest: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            salted = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
            how = salted if self.pss else padding.PKCS1v15()
            made = self.key.sign(attest, how, hashes.SHA256())
            return u16(0x16 if self.pss else 0x14) + u16(11) + sized(made)
        pair = utils.decode_dss_signature(self.key.sign(attest, ec.ECDSA(hashes.SHA256())))
        return u16(0x18) + u16(11) + b"".join(sized(each.to_bytes(32, "big")) for each in pair)

    def evidence(self, log: bytes, nonce: bytes = NONCE) -> Evidence:
        """Honest evidence of a guest that measured just this log."""
        return self.of_pcrs(log, values(log), nonce)

    def of_pcrs(self, log: bytes, pcrs: Mapping[int, bytes], nonce: bytes = NONCE) -> Evidence:
        attest = self.attest(pcrs, nonce)
        return Evidence(self.public_area, nonce, attest, self.sign(attest), log)


def values(log: bytes) -> dict[int, bytes]:
    """PCRs as the log gives them, of SHA-256."""
    return {**dict.fromkeys(BOOT_PCRS, bytes(32)), **replay(parse_log(log), Bank.SHA256)}


def with_pcrs(evidence: Evidence, pcrs: Mapping[int, bytes]) -> Evidence:
    return replace(evidence, pcrs={Bank.SHA256: dict(pcrs)})
