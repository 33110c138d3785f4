"""Quotes: real ones of swtpm verify, and nothing else does."""

import pytest
from boots import NONCE, RESTRICTED_SIGNING, SoftTpm, real, values
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from holdfast.spec.trust import BOOT_PCRS, Bank
from holdfast.trust.quote import (
    AttestationKeyUnfit,
    NonceMismatch,
    NotAQuote,
    QuoteMalformed,
    SignatureInvalid,
    SignatureMalformed,
    check_signature,
    digest_of,
    parse_quote,
    read_attestation_key,
    verify_quote,
)


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
def test_a_real_quote_verifies(scheme: str) -> None:
    evidence = real(scheme)
    key = read_attestation_key(evidence.attestation_key)
    quote = verify_quote(key, evidence.attest, evidence.signature, NONCE)
    assert quote.pcrs(Bank.SHA256) == set(BOOT_PCRS)
    assert digest_of(quote, {Bank.SHA256: values(evidence.log)}, "sha256") == quote.digest
    assert quote.reset_count > 0 and quote.clock_ms > 0


def test_rsa_pss_verifies_and_only_as_the_keys_scheme() -> None:
    private = rsa.generate_private_key(65537, 2048)
    pss, ssa = SoftTpm(private, pss=True), SoftTpm(private)
    attest = pss.attest(values(real().log))
    verify_quote(read_attestation_key(pss.public_area), attest, pss.sign(attest), NONCE)
    with pytest.raises(SignatureMalformed):
        check_signature(read_attestation_key(pss.public_area), attest, ssa.sign(attest))


def test_a_quote_of_another_key_is_refused() -> None:
    evidence = real()
    with pytest.raises(SignatureInvalid):
        check_signature(read_attestation_key(SoftTpm().public_area), evidence.attest, evidence.signature)


def test_an_old_quote_is_refused() -> None:
    evidence = real()
    key = read_attestation_key(evidence.attestation_key)
    for nonce in (b"", NONCE[:-1], NONCE + b"\0", bytes(32)):
        with pytest.raises(NonceMismatch):
            verify_quote(key, evidence.attest, evidence.signature, nonce)


def test_every_byte_of_a_quote_counts() -> None:
    evidence = real()
    key = read_attestation_key(evidence.attestation_key)
    for place in range(len(evidence.attest)):
        attest = bytearray(evidence.attest)
        attest[place] ^= 1
        with pytest.raises(SignatureInvalid):
            check_signature(key, bytes(attest), evidence.signature)


@pytest.mark.parametrize("change", [{"magic": 0xFF544348}, {"kind": 0x8017}, {"kind": 0x801A}])
def test_what_a_tpm_did_not_quote_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(NotAQuote):
        parse_quote(SoftTpm().attest(values(real().log), **change))


def test_a_quote_cut_or_padded_is_refused() -> None:
    attest = real().attest
    for bad in [*(attest[:cut] for cut in range(6, len(attest))), attest + b"\0", attest + bytes(9000)]:
        with pytest.raises(QuoteMalformed):
            parse_quote(bad)


def test_a_signature_cut_or_padded_or_weak_is_refused() -> None:
    evidence = real()
    key = read_attestation_key(evidence.attestation_key)
    good = evidence.signature
    bad = [good[:-1], good[:3], b"", good + b"\0", good[:2] + b"\0\x04" + good[4:], b"\0\x14" + good[2:]]
    for signature in bad:
        with pytest.raises(SignatureMalformed):
            check_signature(key, evidence.attest, signature)


@pytest.mark.parametrize("gone", [1 << 1, 1 << 16, 1 << 18])
def test_a_key_that_would_sign_anything_is_refused(gone: int) -> None:
    with pytest.raises(AttestationKeyUnfit):
        read_attestation_key(SoftTpm(attributes=RESTRICTED_SIGNING & ~gone).public_area)


def test_other_unfit_keys_are_refused() -> None:
    area = SoftTpm().public_area
    weak = SoftTpm(rsa.generate_private_key(65537, 1024)).public_area
    decrypting = SoftTpm(attributes=RESTRICTED_SIGNING | 1 << 17).public_area
    off_curve = area[:-1] + bytes([area[-1] ^ 1])
    for bad in (b"", area[:-1], area + b"\0", weak, decrypting, off_curve, bytes(10000)):
        with pytest.raises(AttestationKeyUnfit):
            read_attestation_key(bad)
    assert isinstance(read_attestation_key(area).public, ec.EllipticCurvePublicKey)
