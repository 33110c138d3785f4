"""Structures of a TPM: canonical, bounded, and refused in words."""

import contextlib
import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.spec.errors import HoldfastError
from holdfast.trust.endorsement_certificate import EndorsementNotTrusted, certifies, load_certificate
from holdfast.trust.tpm.credential import Credential, make_credential
from holdfast.trust.tpm.exchange import Exchange, Request
from holdfast.trust.tpm.numbers import Algorithm, Attributes, Code
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.tpm.public import (
    ATTESTATION_TEMPLATE,
    EK_TEMPLATE_ECC,
    EK_TEMPLATE_RSA,
    STORAGE_TEMPLATE,
    Public,
    is_attestation_key,
    sealed_template,
)
from holdfast.trust.tpm.refusals import TpmRefused
from holdfast.trust.tpm.sessions import EmptyPassword
from holdfast.trust.tpm.wire import Reader, TpmNonsense, u16, u32

TEMPLATES = [
    EK_TEMPLATE_RSA,
    EK_TEMPLATE_ECC,
    STORAGE_TEMPLATE,
    ATTESTATION_TEMPLATE,
    sealed_template(bytes(32)),
]


class Fixed:
    """A TPM that always answers the same."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.commands: list[bytes] = []

    async def transmit(self, command: bytes) -> bytes:
        self.commands.append(command)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def error(code: int) -> bytes:
    return u16(0x8001) + u32(10) + u32(code)


@pytest.mark.parametrize("public", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_public_area_reads_back_and_nothing_else_does(public: Public) -> None:
    data = public.encode()
    assert Public.decode(data) == public
    assert public.name == b"\0\x0b" + hashlib.sha256(data).digest()
    for bad in (data[:-1], data + b"\0", b"", data * 20, b"\0\x25" + data[2:]):
        with pytest.raises(TpmNonsense):
            Public.decode(bad)


@settings(max_examples=2000, deadline=None)
@given(
    template=st.sampled_from(TEMPLATES),
    where=st.integers(0, 330),
    junk=st.binary(min_size=1, max_size=8),
)
def test_a_hostile_public_area_is_read_or_refused(template: Public, where: int, junk: bytes) -> None:
    data = bytearray(template.encode())
    data[where : where + len(junk)] = junk
    with contextlib.suppress(TpmNonsense):
        public = Public.decode(bytes(data))
        assert public.encode() == bytes(data)
        assert public.name and public.key
        make_credential(public, ATTESTATION_TEMPLATE.name, bytes(32))


@pytest.mark.parametrize(
    "change",
    [Attributes.RESTRICTED, Attributes.FIXED_TPM, Attributes.SIGN, Attributes.DECRYPT,
     Attributes.SENSITIVE_DATA_ORIGIN],
)  # fmt: skip
def test_only_a_key_that_signs_for_its_tpm_alone_may_attest(change: Attributes) -> None:
    assert is_attestation_key(ATTESTATION_TEMPLATE)
    data = bytearray(ATTESTATION_TEMPLATE.encode())
    data[4:8] = u32(ATTESTATION_TEMPLATE.attributes ^ change)
    assert not is_attestation_key(Public.decode(bytes(data)))


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=64))
@example(PcrSelection.of([0, 23]).encode())
@example(u32(17))
def test_a_hostile_selection_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(TpmNonsense):
        assert all(0 <= pcr < 24 for pcr in PcrSelection.read(Reader(data, "a selection")).pcrs)


def test_a_selection_is_of_pcrs_only() -> None:
    chosen = PcrSelection.of([7, 0, 7])
    assert chosen.pcrs == (0, 7)
    assert chosen.encode() == bytes.fromhex("00000001000b03810000")
    for bad in ([24], [-1]):
        with pytest.raises(ValueError, match="PCRs are 0 to 23"):
            PcrSelection.of(bad)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (0x18B, "handle", "TPM2_ReadPublic, handle 1: there is no such handle"),
        (0x2C4, "value", "TPM2_ReadPublic, parameter 2: a value"),
        (0x98E, "auth-fail", "TPM2_ReadPublic, session 1: the authorization is wrong"),
        (0x921, "lockout", "TPM2_ReadPublic: it is locked out"),
        (0x177, "", "TPM2_ReadPublic: error 0x177"),
        (0xFFFFFFFF, "", "error 0xffffffff"),
    ],
)
async def test_an_error_of_the_tpm_is_told_in_words(code: int, reason: str, words: str) -> None:
    with pytest.raises(TpmRefused) as refused:
        await Exchange(Fixed(error(code)))(Request(Code.ReadPublic))
    assert (refused.value.reason, refused.value.code) == (reason, code)
    assert words in refused.value.message and refused.value.cure


async def test_a_busy_tpm_is_asked_again() -> None:
    tpm = Fixed(error(0x922), error(0x908), u16(0x8001) + u32(12) + u32(0) + b"ok")
    answer = await Exchange(tpm)(Request(Code.ReadPublic))
    assert answer.parameters.take(2) == b"ok"
    assert len(tpm.commands) == 3


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x80", error(0)[:-1], error(0) + b"\0", u16(0x8002) + u32(10) + u32(0), bytes(5000), error(0)],
    ids=["empty", "one byte", "cut", "padded", "no size of parameters", "too long", "no authorizations"],
)
async def test_a_wrong_answer_is_refused(answer: bytes) -> None:
    request = Request(Code.PCR_Extend, authorizations=(EmptyPassword(),))
    with pytest.raises(HoldfastError) as refused:
        await Exchange(Fixed(answer))(request)
    assert refused.value.id in ("tpm-nonsense", "tpm-forged")


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=300))
@example(b"\x30\x83\xff\xff\xff\x00")
@example(b"\x30\x03\x02\x01\x00")
def test_a_hostile_certificate_or_credential_is_refused(data: bytes) -> None:
    with pytest.raises(EndorsementNotTrusted):
        load_certificate(data)
    assert not certifies(data, EK_TEMPLATE_ECC)
    with contextlib.suppress(TpmNonsense):
        assert Credential.decode(data).encode() == data


def test_a_credential_is_for_storage_keys_and_short() -> None:
    with pytest.raises(TpmNonsense):
        make_credential(ATTESTATION_TEMPLATE, bytes(34), b"x")
    with pytest.raises(ValueError, match="32 bytes"):
        make_credential(EK_TEMPLATE_RSA, bytes(34), bytes(33))
    assert EK_TEMPLATE_RSA.kind == Algorithm.RSA
