"""Hosts with real (emulated) TPMs before a verifier: trusted, tampered, replayed, unknown, pretending."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from emulated_tpm import EmulatedTpm

from holdfast.spec.errors import NotFound
from holdfast.spec.host_attestation import EnrolledHost, HostEnrol, HostProof, ReleaseRequest
from holdfast.spec.ids import new_id
from holdfast.trust.endorsement_certificate import EndorsementNotTrusted
from holdfast.trust.host_attestation.challenges import NonceReplayed, NonceUnknown
from holdfast.trust.host_attestation.host import AttestingHost
from holdfast.trust.host_attestation.release import NotWrappedForUs, ReleaseKeyUnfit
from holdfast.trust.host_attestation.tokens import TokenOfAnotherVerifier, TokenSigner, TokenTooOld
from holdfast.trust.host_attestation.verifier import (
    HostNameTaken,
    HostNotEnrolled,
    HostNotTrusted,
    HostTpmNotProven,
    Verifier,
)
from holdfast.trust.tpm.refusals import TpmRefused
from holdfast.trust.tpm.transports import open_tpm

ONE, TWO = (f"vm {new_id()}" for _ in range(2))
SECRET = b"the key of a VM's TPM, 64 digits"


class Records:
    def __init__(self) -> None:
        self.hosts: dict[str, EnrolledHost] = {}

    async def get(self, host_id: str) -> EnrolledHost | None:
        return self.hosts.get(host_id)

    async def named(self, name: str) -> EnrolledHost | None:
        return next((host for host in self.hosts.values() if host.name.lower() == name.lower()), None)

    async def put(self, host: EnrolledHost) -> None:
        self.hosts[host.id] = host

    async def remove(self, host_id: str) -> None:
        del self.hosts[host_id]


class Kept:
    async def get(self, purpose: str, make: bool) -> bytes:
        if purpose != ONE:
            raise NotFound("nothing is kept for this", value=purpose)
        return SECRET


class Bench:
    def __init__(self, tpms: list[EmulatedTpm], certified: bool = True) -> None:
        self.now = datetime.now(UTC)
        self.records = Records()
        signer = TokenSigner(lambda: ec.generate_private_key(ec.SECP256R1()), lambda: self.now)
        trusted = [x509.load_pem_x509_certificate(tpms[0].authority.read_bytes())] if certified else []
        self.verifier = Verifier(self.records, Kept(), signer, trusted, clock=lambda: self.now)
        self.hosts = [AttestingHost(tpm.address, Path("/none")) for tpm in tpms]

    async def enrol(self, number: int = 0, name: str = "alpha") -> EnrolledHost:
        host = self.hosts[number]
        challenge = await self.verifier.enrol(HostEnrol(name=name, identity=await host.identity()))
        return await self.verifier.finish(await host.prove(challenge))

    async def proof(self, host: EnrolledHost, number: int = 0) -> HostProof:
        return await self.hosts[number].prove(await self.verifier.challenge(host.id))


def asking(token: str, release_key: str, purpose: str) -> ReleaseRequest:
    return ReleaseRequest(token=token, release_key=release_key, purpose=purpose)


@pytest.fixture
def bench(tpms: list[EmulatedTpm]) -> Bench:
    return Bench(tpms)


async def test_a_trusted_host_gets_what_is_kept_for_it(bench: Bench, tpms: list[EmulatedTpm]) -> None:
    host = await bench.enrol()
    assert host.certified and host.last and host.last.verdict == "trusted"
    tpms[0].reboot()
    attested = await bench.verifier.attest(await bench.proof(host))
    assert attested.verdict.verdict == "trusted"
    assert [found.id for found in attested.verdict.findings] == ["no-event-log"]
    release_key = await bench.hosts[0].release_key(host.pcrs)
    wrapped = await bench.verifier.release(asking(attested.token, release_key, ONE))
    assert SECRET.hex() not in wrapped.model_dump_json()
    assert await bench.hosts[0].unwrap(wrapped, host.pcrs, ONE) == SECRET
    with pytest.raises(NotWrappedForUs):
        await bench.hosts[0].unwrap(wrapped, host.pcrs, TWO)
    with pytest.raises(TpmRefused):  # another host's TPM
        await bench.hosts[1].unwrap(wrapped, host.pcrs, ONE)
    with pytest.raises(NotFound):
        await bench.verifier.release(asking(attested.token, release_key, TWO))


async def test_what_was_released_does_not_open_after_another_boot(
    bench: Bench, tpms: list[EmulatedTpm]
) -> None:
    host = await bench.enrol()
    attested = await bench.verifier.attest(await bench.proof(host))
    release_key = await bench.hosts[0].release_key(host.pcrs)
    recorded = await bench.verifier.release(asking(attested.token, release_key, ONE))
    tpms[0].reboot()
    async with open_tpm(tpms[0].address) as tpm:
        await tpm.pcr_extend(4, b"\1" * 32)
    with pytest.raises(TpmRefused) as refused:
        await bench.hosts[0].unwrap(recorded, host.pcrs, ONE)
    assert refused.value.reason == "value"
    # The token is still good, but not for a key that opens in this other state.
    other_state = {**host.pcrs, 4: "11" * 32}
    with pytest.raises(ReleaseKeyUnfit):
        await bench.verifier.release(
            asking(attested.token, await bench.hosts[0].release_key(other_state), ONE)
        )


async def test_a_tampered_host_is_told_which_pcr_changed(bench: Bench, tpms: list[EmulatedTpm]) -> None:
    host = await bench.enrol()
    async with open_tpm(tpms[0].address) as tpm:
        await tpm.pcr_extend(7, b"\1" * 32)
    with pytest.raises(HostNotTrusted, match=r"PCR 7 \(Secure Boot") as refused:
        await bench.verifier.attest(await bench.proof(host))
    assert [found["id"] for found in refused.value.detail["findings"]] == ["pcr-changed", "no-event-log"]
    known = bench.records.hosts[host.id]
    assert known.last and known.last.verdict == "not-trusted"
    # Changed on purpose: enrolled anew it is trusted.
    await bench.enrol()
    assert await bench.verifier.attest(await bench.proof(host))


async def test_a_tampered_host_that_lies_about_its_pcrs_is_found(
    bench: Bench, tpms: list[EmulatedTpm]
) -> None:
    host = await bench.enrol()
    async with open_tpm(tpms[0].address) as tpm:
        await tpm.pcr_extend(0, b"\1" * 32)
    proof = await bench.proof(host)
    lie = proof.evidence.model_copy(update={"pcrs": host.pcrs})
    with pytest.raises(HostNotTrusted, match="not the quoted ones"):
        await bench.verifier.attest(proof.model_copy(update={"evidence": lie}))


async def test_a_proof_is_good_once_and_for_its_nonce(bench: Bench) -> None:
    host = await bench.enrol()
    proof = await bench.proof(host)
    await bench.verifier.attest(proof)
    with pytest.raises(NonceReplayed):
        await bench.verifier.attest(proof)
    fresh = await bench.verifier.challenge(host.id)
    with pytest.raises(HostNotTrusted, match="another nonce"):
        await bench.verifier.attest(proof.model_copy(update={"nonce": fresh.nonce}))
    with pytest.raises(NonceUnknown):
        await bench.verifier.attest(proof.model_copy(update={"nonce": "00" * 32}))


async def test_another_hosts_quote_is_not_taken(bench: Bench) -> None:
    host = await bench.enrol()
    with pytest.raises(HostNotTrusted, match="not made by the enrolled attestation key"):
        await bench.verifier.attest(await bench.proof(host, number=1))
    # Whoever sent it, it says nothing of the host: what is known of that stays.
    known = await bench.verifier._known(host.id)
    assert known.last == host.last and known.last and known.last.verdict == "trusted"


async def test_an_unknown_host_is_refused(bench: Bench) -> None:
    host = await bench.enrol()
    proof = await bench.proof(host)
    attested = await bench.verifier.attest(await bench.proof(host))
    await bench.verifier.forget("alpha")
    with pytest.raises(HostNotEnrolled):
        await bench.verifier.challenge(host.id)
    with pytest.raises(HostNotEnrolled):
        await bench.verifier.attest(proof)
    with pytest.raises(HostNotEnrolled):
        await bench.verifier.release(asking(attested.token, await bench.hosts[0].release_key(host.pcrs), ONE))
    with pytest.raises(HostNotEnrolled):
        await bench.verifier.forget("alpha")


async def test_an_old_token_and_one_of_another_verifier_release_nothing(
    bench: Bench, tpms: list[EmulatedTpm]
) -> None:
    host = await bench.enrol()
    token = (await bench.verifier.attest(await bench.proof(host))).token
    release_key = await bench.hosts[0].release_key(host.pcrs)
    other = Bench(tpms)
    await other.enrol()
    with pytest.raises(TokenOfAnotherVerifier):
        await other.verifier.release(asking(token, release_key, ONE))
    bench.now += timedelta(hours=1)
    with pytest.raises(TokenTooOld):
        await bench.verifier.release(asking(token, release_key, ONE))


async def test_a_host_cannot_show_the_tpm_of_another(bench: Bench) -> None:
    """It shows another's endorsement key beside its own attestation key: the credential stays shut."""
    theirs, ours = await bench.hosts[0].identity(), await bench.hosts[1].identity()
    mixed = theirs.model_copy(update={"attestation": ours.attestation})
    challenge = await bench.verifier.enrol(HostEnrol(name="mallory", identity=mixed))
    for host in bench.hosts:
        with pytest.raises(TpmRefused):
            await host.prove(challenge)
    without = challenge.model_copy(update={"credential": ""})
    proof = await bench.hosts[1].prove(without)
    with pytest.raises(HostTpmNotProven):
        await bench.verifier.finish(proof.model_copy(update={"activated": "00" * 32}))
    assert bench.records.hosts == {}


async def test_a_tpm_that_nobody_vouches_for_is_refused_or_remarked(
    bench: Bench, tpms: list[EmulatedTpm]
) -> None:
    with pytest.raises(EndorsementNotTrusted):
        await bench.enrol(number=1)
    open_minded = Bench(tpms, certified=False)
    host = await open_minded.enrol(number=1)
    assert not host.certified and host.last
    assert "endorsement-not-certified" in [found.id for found in host.last.findings]


async def test_names_and_tpms_are_enrolled_once(tpms: list[EmulatedTpm]) -> None:
    bench = Bench(tpms, certified=False)
    first = await bench.enrol(0, "alpha")
    assert (await bench.enrol(0, "alpha")).id == first.id
    with pytest.raises(HostNameTaken):
        await bench.enrol(1, "Alpha")
    with pytest.raises(HostNameTaken):
        await bench.enrol(0, "beta")
    await bench.enrol(1, "beta")
    assert [host.name for host in bench.records.hosts.values()] == ["alpha", "beta"]


async def test_demanded_values_are_demanded_at_once(bench: Bench) -> None:
    identity = await bench.hosts[0].identity()
    request = HostEnrol(name="alpha", identity=identity, pcrs={7: "11" * 32})
    challenge = await bench.verifier.enrol(request)
    assert challenge.pcrs == (7,)
    with pytest.raises(HostNotTrusted):
        await bench.verifier.finish(await bench.hosts[0].prove(challenge))
    assert bench.records.hosts == {}


async def test_what_a_host_does_not_show_is_not_learned(bench: Bench) -> None:
    host = bench.hosts[0]
    challenge = await bench.verifier.enrol(HostEnrol(name="alpha", identity=await host.identity()))
    proof = await host.prove(challenge.model_copy(update={"pcrs": (16,)}))
    with pytest.raises(HostNotTrusted, match=r"PCR 7 .* is not in the quote"):
        await bench.verifier.finish(proof)


async def test_many_attest_at_once(bench: Bench) -> None:
    host = await bench.enrol()
    proofs = [await bench.proof(host) for _ in range(4)]
    attested = await asyncio.gather(*(bench.verifier.attest(proof) for proof in proofs))
    assert len({each.token for each in attested}) == 4
