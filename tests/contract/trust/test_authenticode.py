"""The distribution's own Shim, GRUB and systemd-boot under the distribution's own keys."""

import struct
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.trust.authenticode import Loader, Standing, examine, judge
from holdfast.trust.microsoft import BY_ID
from holdfast.trust.signature_lists import SHA256, X509, KeyDatabase, Signature, database_of, read_certificate
from holdfast.trust.variables import KeyInventory, inventory, parse

UEFI_2011, UEFI_2023 = "Microsoft Corporation UEFI CA 2011", "Microsoft UEFI CA 2023"
_ME = uuid.UUID(int=1)


@pytest.fixture(scope="session")
def keys(store_of_2011: bytes) -> KeyInventory:
    return inventory(parse(store_of_2011, Path("store")))


@pytest.fixture(scope="session")
def shim(programs: dict[str, bytes]) -> Loader:
    return examine(programs["shim"])


def verdict(loader: Loader, keys: KeyInventory, *revoked: Signature) -> tuple[Standing, str]:
    judged = judge(loader, keys.databases["db"], database_of(revoked))
    return judged.standing, judged.by


def test_shim_is_signed_twice_and_accepted(shim: Loader, keys: KeyInventory) -> None:
    assert shim.signers == (UEFI_2011, UEFI_2023) and shim.broken_signatures == 0
    assert [each.signer for each in shim.signatures] == [
        "Microsoft Windows UEFI Driver Publisher",
        "Microsoft UEFI CA 2023 signer",
    ]
    assert verdict(shim, keys) == (Standing.ACCEPTED, UEFI_2011)


def test_others_are_not(programs: dict[str, bytes], keys: KeyInventory) -> None:
    grub = examine(programs["grub"])
    assert grub.signers == ("Debian Secure Boot CA",)
    assert verdict(grub, keys)[0] is Standing.UNKNOWN_SIGNER
    unsigned = examine(programs["unsigned"])
    assert verdict(unsigned, keys)[0] is Standing.UNSIGNED
    assert verdict(examine(b"MZ" + bytes(4000)), keys)[0] is Standing.DAMAGED
    allowed = database_of([Signature(SHA256, _ME, unsigned.digests["sha256"])])
    assert judge(unsigned, allowed, KeyDatabase()).standing is Standing.ACCEPTED


def test_revocation_by_digest_and_by_certificate(shim: Loader, keys: KeyInventory) -> None:
    digest = Signature(SHA256, _ME, shim.digests["sha256"])
    assert verdict(shim, keys, digest) == (Standing.REVOKED, f"sha256:{shim.sha256}")
    # One revoked signature is too many, whatever the other one is: so does edk2.
    for signature in shim.signatures:
        for held in signature.chain:
            assert verdict(shim, keys, Signature(X509, _ME, held.der)) == (Standing.REVOKED, held.name)


def test_revocation_by_the_hash_of_a_certificate(shim: Loader, keys: KeyInventory) -> None:
    import hashlib

    kind = uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
    leaf = shim.signatures[1].chain[0]
    body = hashlib.sha256(leaf.certificate.tbs_certificate_bytes).digest() + bytes(16)
    assert verdict(shim, keys, Signature(kind, _ME, body)) == (Standing.REVOKED, leaf.name)


def test_a_database_with_the_authority_of_2023_alone(shim: Loader, programs: dict[str, bytes]) -> None:
    authority = shim.signatures[1].chain[1]
    assert authority.fingerprint == BY_ID["uefi-ca-2023"].fingerprint
    database = database_of([Signature(X509, _ME, authority.der)])
    assert judge(shim, database, KeyDatabase()).by == UEFI_2023
    leaf = database_of([Signature(X509, _ME, shim.signatures[0].chain[0].der)])
    assert judge(shim, leaf, KeyDatabase()).standing is Standing.ACCEPTED


@pytest.mark.parametrize("where", [0x2000, 0x50000, -1])
def test_a_changed_program_loses_its_signatures(
    programs: dict[str, bytes], keys: KeyInventory, where: int
) -> None:
    data = bytearray(programs["shim"])
    table = struct.unpack_from("<L", data, struct.unpack_from("<L", data, 0x3C)[0] + 24 + 112 + 32)[0]
    data[where if where > 0 else table - 1] ^= 1
    found = examine(bytes(data))
    assert found.signatures == () and found.broken_signatures == 2
    assert verdict(found, keys)[0] is Standing.UNSIGNED


def test_a_signature_of_another_program_does_not_hold(programs: dict[str, bytes]) -> None:
    """GRUB with Shim's signatures in place of its own."""
    shim, grub = programs["shim"], bytearray(programs["unsigned"])
    at = struct.unpack_from("<L", shim, 0x3C)[0] + 24 + 112 + 32
    address, size = struct.unpack_from("<LL", shim, at)
    grub += bytes(-len(grub) % 8)
    entry = struct.unpack_from("<L", grub, 0x3C)[0] + 24 + 112 + 32
    struct.pack_into("<LL", grub, entry, len(grub), size)
    found = examine(bytes(grub + shim[address : address + size]))
    assert found.signatures == () and found.broken_signatures == 2


def test_a_certificate_of_the_same_name_is_no_authority(shim: Loader, keys: KeyInventory) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    real = shim.signatures[0].chain[1].certificate
    key = rsa.generate_private_key(65537, 2048)
    made = x509.CertificateBuilder().subject_name(real.subject).issuer_name(real.subject)
    made = made.public_key(key.public_key()).serial_number(real.serial_number)
    made = made.not_valid_before(real.not_valid_before_utc).not_valid_after(real.not_valid_after_utc)
    false = made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    held = read_certificate(false)
    assert held is not None and held.name == UEFI_2011
    only = replace(shim, signatures=shim.signatures[:1])
    found = judge(only, database_of([Signature(X509, _ME, false)]), KeyDatabase())
    assert found.standing is Standing.UNKNOWN_SIGNER
