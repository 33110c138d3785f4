"""Quotes of hosts, made here as a TPM makes them, whole and altered: none that is altered is taken."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.trust.host_attestation.quote_check import QuoteNotGenuine, check_quote
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.tpm.public import ATTESTATION_TEMPLATE, Public
from holdfast.trust.tpm.wire import TpmNonsense, sized, u8, u16, u32

NONCE = bytes(range(32))
VALUES = {pcr: bytes([pcr]) * 32 for pcr in (0, 4, 7)}
KEY = ec.generate_private_key(ec.SECP256R1())


def public_of(key: ec.EllipticCurvePrivateKey) -> Public:
    numbers = key.public_key().public_numbers()
    point = (numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))
    return replace(ATTESTATION_TEMPLATE, unique=point)


def attest(magic: int = 0xFF544347, kind: int = 0x8018, nonce: bytes = NONCE) -> bytes:
    selection = PcrSelection.of(VALUES)
    clock = bytes(8) + u32(3) + u32(0) + u8(1) + bytes(8)
    head = u32(magic) + u16(kind) + sized(b"\0\x0b" + bytes(32)) + sized(nonce) + clock
    return head + selection.encode() + sized(selection.digest(VALUES))


def signature(data: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return u16(0x18) + u16(0x0B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


PUBLIC, ATTEST = public_of(KEY), attest()
SIGNATURE = signature(ATTEST)


def test_a_genuine_quote_is_taken() -> None:
    check_quote(PUBLIC, ATTEST, SIGNATURE, NONCE, VALUES)


@settings(max_examples=5000, deadline=None)
@given(
    of_signature=st.booleans(),
    where=st.integers(0, 200),
    cut=st.integers(0, 4),
    junk=st.binary(max_size=4),
)
def test_an_altered_quote_is_never_taken(of_signature: bool, where: int, cut: int, junk: bytes) -> None:
    whole = SIGNATURE if of_signature else ATTEST
    at = where % (len(whole) + 1)
    altered = whole[:at] + junk + whole[at + cut :]
    if altered == whole:
        return
    told = (ATTEST, altered) if of_signature else (altered, SIGNATURE)
    with pytest.raises((QuoteNotGenuine, TpmNonsense)):
        check_quote(PUBLIC, *told, NONCE, VALUES)


@pytest.mark.parametrize(
    "data",
    [attest(magic=0), attest(kind=0x8014), attest(nonce=bytes(32)), ATTEST + b"\0", ATTEST[:-1]],
    ids=["not by a TPM", "no quote", "another nonce", "padded", "cut"],
)
def test_what_the_key_signed_but_is_no_such_quote_is_refused(data: bytes) -> None:
    with pytest.raises((QuoteNotGenuine, TpmNonsense)):
        check_quote(PUBLIC, data, signature(data), NONCE, VALUES)


@pytest.mark.parametrize(
    "values",
    [{**VALUES, 4: bytes(32)}, {**VALUES, 9: bytes(32)}, {0: VALUES[0], 4: VALUES[4]}],
    ids=["other value", "more", "less"],
)
def test_other_values_than_the_quoted_are_refused(values: dict[int, bytes]) -> None:
    with pytest.raises(QuoteNotGenuine):
        check_quote(PUBLIC, ATTEST, SIGNATURE, NONCE, values)


def test_another_key_and_one_that_signs_anything_are_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    for key, made in ((public_of(other), SIGNATURE), (PUBLIC, signature(ATTEST, other))):
        with pytest.raises(QuoteNotGenuine):
            check_quote(key, ATTEST, made, NONCE, VALUES)
    loose = replace(PUBLIC, attributes=PUBLIC.attributes & ~(1 << 16))
    with pytest.raises(QuoteNotGenuine, match="no attestation key"):
        check_quote(loose, ATTEST, SIGNATURE, NONCE, VALUES)
