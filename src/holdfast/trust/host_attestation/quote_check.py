"""Whether a quote is genuine: of this attestation key, this nonce, and these PCR values.

Trusted Platform Module Library, part 2: TPMS_ATTEST (section 10.12.8), TPMT_SIGNATURE (11.3.4).
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from holdfast.spec.errors import Failed
from holdfast.trust.tpm.numbers import Algorithm
from holdfast.trust.tpm.pcrs import PcrSelection, PcrValues
from holdfast.trust.tpm.public import Public, is_attestation_key
from holdfast.trust.tpm.wire import Reader

_GENERATED = 0xFF544347
_QUOTE = 0x8018


class QuoteNotGenuine(Failed):
    id = "host-quote-not-genuine"


def check_quote(key: Public, attest: bytes, signature: bytes, nonce: bytes, values: PcrValues) -> None:
    """Raises QuoteNotGenuine, with the reason, or TpmNonsense."""
    if not is_attestation_key(key):
        raise _not_genuine("the key is no attestation key")
    _check_signature(key, attest, signature)
    reader = Reader(attest, "the quote")
    if (reader.u32(), reader.u16()) != (_GENERATED, _QUOTE):
        raise _not_genuine("it is no quote of a TPM")
    reader.sized()  # the key's qualified name
    if reader.sized() != nonce:
        raise _not_genuine("it is for another nonce")
    reader.take(8 + 4 + 4 + 1 + 8)  # clock information, firmware version
    quoted, digest = PcrSelection.read(reader), reader.sized()
    reader.end()
    if quoted.pcrs != tuple(sorted(values)):
        raise _not_genuine("it covers other PCRs than were told")
    if quoted.digest(values) != digest:
        raise _not_genuine("the PCR values told are not the quoted ones")


def _check_signature(key: Public, attest: bytes, signature: bytes) -> None:
    reader = Reader(signature, "the signature")
    if (reader.u16(), reader.u16()) != (Algorithm.ECDSA, Algorithm.SHA256):
        raise _not_genuine("its signature is of another scheme")
    r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    reader.end()
    public = key.key
    try:
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        public.verify(encode_dss_signature(r, s), attest, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise _not_genuine("its signature is not by the host's attestation key") from error


def _not_genuine(reason: str) -> QuoteNotGenuine:
    return QuoteNotGenuine(
        f"the quote of the host's TPM is not genuine: {reason}",
        value=reason,
        cure="Attest again; enrol the host anew if its TPM was replaced or cleared.",
    )
