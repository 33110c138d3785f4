"""Whether a host's quote is genuine: of its attestation key, of this nonce, and of just these PCR values."""

from holdfast.spec.errors import Failed
from holdfast.spec.trust import Bank
from holdfast.trust.quote import (
    AttestationKeyUnfit,
    NonceMismatch,
    NotAQuote,
    QuoteMalformed,
    SignatureInvalid,
    SignatureMalformed,
    read_attestation_key,
    verify_quote,
)
from holdfast.trust.tpm.pcrs import PcrSelection, PcrValues
from holdfast.trust.tpm.public import Public, is_attestation_key

_REFUSALS = (
    AttestationKeyUnfit,
    SignatureMalformed,
    SignatureInvalid,
    NotAQuote,
    QuoteMalformed,
    NonceMismatch,
)


class QuoteNotGenuine(Failed):
    id = "host-quote-not-genuine"


def check_quote(key: Public, attest: bytes, signature: bytes, nonce: bytes, values: PcrValues) -> None:
    """Raises QuoteNotGenuine, with the reason."""
    if not is_attestation_key(key):
        raise _not_genuine("the key is no attestation key")
    try:
        quote = verify_quote(read_attestation_key(key.encode()), attest, signature, nonce)
    except _REFUSALS as error:
        raise _not_genuine(error.message) from error
    if any(each.bank is not Bank.SHA256 for each in quote.selections if each.pcrs):
        raise _not_genuine("it covers PCRs of a bank other than SHA-256")
    if quote.pcrs(Bank.SHA256) != set(values):
        raise _not_genuine("it covers other PCRs than were told")
    if PcrSelection.of(values).digest(values) != quote.digest:
        raise _not_genuine("the PCR values told are not the quoted ones")


def _not_genuine(reason: str) -> QuoteNotGenuine:
    return QuoteNotGenuine(
        f"the quote of the host's TPM is not genuine: {reason}",
        value=reason,
        cure="Attest again; enrol the host anew if its TPM was replaced or cleared.",
    )
