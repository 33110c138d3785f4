"""Our TPM commands against the real swtpm, with tpm2-tools as an independent judge."""

import asyncio
import datetime
import os
import secrets
import socket
import threading
import tty
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from emulated_tpm import EmulatedTpm

from holdfast.trust.attestation_key import attester
from holdfast.trust.endorsement_certificate import (
    EndorsementNotTrusted,
    load_certificate,
    verify_endorsement,
)
from holdfast.trust.tpm.credential import Credential, make_credential
from holdfast.trust.tpm.numbers import HandleKind, Permanent
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.tpm.public import (
    EK_TEMPLATE_ECC,
    EK_TEMPLATE_RSA,
    STORAGE_TEMPLATE,
    Public,
    is_attestation_key,
)
from holdfast.trust.tpm.refusals import BadTpmAddress, NoTpm, TpmNotReachable, TpmRefused
from holdfast.trust.tpm.tpm import Tpm
from holdfast.trust.tpm.transports import open_tpm
from holdfast.trust.tpm.wire import sized

NOW = datetime.datetime.now(datetime.UTC)
NONCE = bytes(range(32))
BOOT = PcrSelection.of([0, 4, 7, 9, 14])


def authority(emulated: EmulatedTpm) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(emulated.authority.read_bytes())]


async def left_loaded(tpm: Tpm) -> list[int]:
    kinds = (HandleKind.OBJECTS, HandleKind.HMAC_SESSIONS, HandleKind.POLICY_SESSIONS)
    return [handle for kind in kinds for handle in await tpm.handles(kind)]


async def test_the_endorsement_key_is_the_one_of_the_certificate(tpms: list[EmulatedTpm]) -> None:
    one, two = tpms
    async with open_tpm(one.address) as tpm, attester(tpm) as attesting:
        found = await attesting.endorsement()
        # The persistent key is what the template makes: a guest that evicts it gains nothing.
        async with tpm.primary(Permanent.ENDORSEMENT, EK_TEMPLATE_RSA) as made:
            assert made.public == found.public
    async with open_tpm(two.address) as tpm, attester(tpm) as attesting:
        other = await attesting.endorsement()
    assert found.certificate
    certificate = load_certificate(found.certificate)
    verify_endorsement(certificate, found.public, authority(one), NOW)
    with pytest.raises(EndorsementNotTrusted, match="not trusted here"):
        verify_endorsement(certificate, found.public, authority(two), NOW)
    with pytest.raises(EndorsementNotTrusted, match="another key"):
        verify_endorsement(certificate, other.public, authority(one), NOW)
    with pytest.raises(EndorsementNotTrusted, match="is valid from"):
        verify_endorsement(certificate, found.public, authority(one), NOW - datetime.timedelta(days=400))


async def test_the_attestation_key_is_always_the_same_and_of_one_tpm(
    tpms: list[EmulatedTpm], tmp_path: Path
) -> None:
    one, two = tpms
    async with open_tpm(one.address) as tpm, attester(tpm) as attesting:
        first = attesting.public
        assert is_attestation_key(first)
    one.reboot()
    async with open_tpm(one.address) as tpm:
        async with attester(tpm) as attesting:
            assert attesting.public == first
        assert await left_loaded(tpm) == []
    async with open_tpm(two.address) as tpm, attester(tpm) as attesting:
        assert attesting.public != first
    (tmp_path / "public").write_bytes(sized(first.encode()))
    told = one.tool("tpm2_print", "-t", "TPM2B_PUBLIC", str(tmp_path / "public"), folder=tmp_path).decode()
    assert "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign" in told


async def test_checkquote_accepts_our_quote_and_no_other(emulated: EmulatedTpm, tmp_path: Path) -> None:
    async with open_tpm(emulated.address) as tpm, attester(tpm) as attesting:
        await tpm.pcr_extend(4, bytes(range(32)))
        quote = await attesting.quote(NONCE, BOOT)
        values = await tpm.pcr_read(BOOT)
        key = attesting.public.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, content in {"a": quote.attest, "s": quote.signature, "k": key}.items():
        (tmp_path / name).write_bytes(content)
    check = ("tpm2_checkquote", "-u", "k", "-m", "a", "-s", "s", "-q")
    emulated.tool(*check, NONCE.hex(), folder=tmp_path)
    with pytest.raises(AssertionError):
        emulated.tool(*check, bytes(32).hex(), folder=tmp_path)
    assert BOOT.digest(values) in quote.attest
    text = emulated.tool("tpm2_pcrread", "sha256:4", folder=tmp_path).decode()
    assert values[4].hex().upper() in text.upper()


async def test_all_pcrs_are_read_in_parts(emulated: EmulatedTpm) -> None:
    async with open_tpm(emulated.address) as tpm:
        values = await tpm.pcr_read(PcrSelection.of(range(24)))
    assert sorted(values) == list(range(24))
    assert values[0] == bytes(32) and values[17] == b"\xff" * 32


async def test_our_credential_is_activated_by_us_and_by_tpm2_tools(
    emulated: EmulatedTpm, tmp_path: Path
) -> None:
    value = secrets.token_bytes(32)
    async with open_tpm(emulated.address) as tpm, attester(tpm) as attesting:
        endorsement = (await attesting.endorsement()).public
        assert await attesting.activate(make_credential(endorsement, attesting.name, value)) == value
        with pytest.raises(TpmRefused) as refused:
            await attesting.activate(make_credential(endorsement, endorsement.name, value))
        assert refused.value.reason == "integrity"
        assert "TPM2_ActivateCredential" in refused.value.message
    use = emulated.tool
    use("tpm2_createek", "-c", "ek", "-G", "rsa", "-u", "ek.pub", folder=tmp_path)
    use("tpm2_createak", "-C", "ek", "-c", "ak", "-n", "ak.name", "-G", "ecc", "-s", "ecdsa", folder=tmp_path)
    name = (tmp_path / "ak.name").read_bytes()
    made = make_credential(Public.decode((tmp_path / "ek.pub").read_bytes()[2:]), name, value)
    # Magic and version of tpm2-tools' own file, then the two TPM2Bs.
    (tmp_path / "credential").write_bytes(bytes.fromhex("badcc0de00000001") + made.encode())
    use("tpm2_flushcontext", "-t", folder=tmp_path)
    use("tpm2_startauthsession", "--policy-session", "-S", "session", folder=tmp_path)
    use("tpm2_policysecret", "-S", "session", "-c", "e", folder=tmp_path)
    use(
        *("tpm2_activatecredential", "-c", "ak", "-C", "ek", "-i", "credential", "-o", "out"),
        *("-P", "session:session"),
        folder=tmp_path,
    )
    assert (tmp_path / "out").read_bytes() == value


@pytest.mark.parametrize("template", [EK_TEMPLATE_RSA, EK_TEMPLATE_ECC], ids=["rsa", "ecc"])
async def test_a_credential_by_tpm2_tools_is_activated_by_us(
    emulated: EmulatedTpm, tmp_path: Path, template: Public
) -> None:
    value = secrets.token_bytes(32)
    (tmp_path / "value").write_bytes(value)
    async with open_tpm(emulated.address) as tpm, attester(tpm) as attesting:
        name = attesting.name
        async with tpm.primary(Permanent.ENDORSEMENT, template) as endorsement:
            public = endorsement.public
            (tmp_path / "ek").write_bytes(sized(public.encode()))
    emulated.tool(
        *("tpm2_makecredential", "-T", "none", "-u", "ek", "-s", "value", "-n", name.hex(), "-o", "out"),
        folder=tmp_path,
    )
    theirs = Credential.decode((tmp_path / "out").read_bytes()[8:])
    async with open_tpm(emulated.address) as tpm:
        for credential in (theirs, make_credential(public, name, value)):
            async with (
                attester(tpm) as attesting,
                tpm.primary(Permanent.ENDORSEMENT, template) as key,
                tpm.policy_session() as policy,
            ):
                await tpm.policy_secret(policy, Permanent.ENDORSEMENT)
                hidden = (credential.blob, credential.secret)
                assert await tpm.activate_credential(attesting.key, key, policy, *hidden) == value
        assert await left_loaded(tpm) == []


async def test_what_an_earlier_caller_left_is_flushed(emulated: EmulatedTpm) -> None:
    for _ in range(5):  # more than the TPM has room for
        async with open_tpm(emulated.address) as tpm:
            stack = tpm.primary(Permanent.OWNER, STORAGE_TEMPLATE)
            await stack.__aenter__()
            await tpm.policy_session().__aenter__()


async def test_a_device_is_spoken_to_like_a_socket(emulated: EmulatedTpm) -> None:
    """A pseudo-terminal stands for /dev/tpmrm0; behind it is swtpm."""
    master, slave = os.openpty()
    tty.setraw(slave)
    answering = threading.Thread(target=_bridge, args=(master, str(emulated.socket)))
    answering.start()
    try:
        async with open_tpm(f"device:{os.ttyname(slave)}") as tpm, attester(tpm) as attesting:
            assert is_attestation_key(attesting.public)
            assert (await attesting.endorsement()).certificate
            with pytest.raises(TpmRefused) as refused:
                await tpm.read_public(0x81777777)
            assert refused.value.reason == "handle"
    finally:
        os.close(slave)
        answering.join(10)
        os.close(master)


def _bridge(master: int, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as tpm:
        tpm.connect(path)
        while True:
            try:
                command = os.read(master, 4096)
            except OSError:
                return
            tpm.sendall(command)
            os.write(master, tpm.recv(4096))


async def test_a_tpm_that_is_not_there_is_told(emulated: EmulatedTpm, tmp_path: Path) -> None:
    for address, refusal in [
        (f"swtpm:{tmp_path}/none", NoTpm),
        (f"device:{tmp_path}/none", NoTpm),
        ("none", NoTpm),
        ("device:relative", BadTpmAddress),
        ("/dev/tpm0", BadTpmAddress),
    ]:
        with pytest.raises(refusal):
            async with open_tpm(address):
                pass
    async with open_tpm(emulated.address) as tpm:
        emulated.stop()
        with pytest.raises(TpmNotReachable):
            await tpm.pcr_read(BOOT)


async def test_a_command_given_up_in_the_middle_ends_the_transport(emulated: EmulatedTpm) -> None:
    async with open_tpm(emulated.address) as tpm:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                async with tpm.primary(Permanent.ENDORSEMENT, EK_TEMPLATE_RSA):
                    pass
        with pytest.raises(TpmNotReachable, match="in the middle"):
            await tpm.pcr_read(BOOT)
    async with open_tpm(emulated.address) as tpm:
        assert len(await tpm.pcr_read(BOOT)) == len(BOOT.pcrs)
