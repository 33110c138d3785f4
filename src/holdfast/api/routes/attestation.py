"""Attested hosts: what a host says of itself to its verifier, and what a verifier knows and gives."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Paging, Viewer, With
from holdfast.spec.host_attestation import (
    EnrolledHost,
    HostAttested,
    HostChallenge,
    HostEnrol,
    HostId,
    HostIdentity,
    HostProof,
    HostStanding,
    ReleaseRequest,
    VerifierLink,
    VerifierView,
    WrappedForHost,
)
from holdfast.spec.paging import Page

router = APIRouter(tags=["attested hosts"])


@router.get("/v1/host/attestation")
async def show_host_identity(services: With, _: Admin) -> HostIdentity:
    """The public keys of this host's TPM."""
    return await services.attesting.identity()


@router.post("/v1/host/attestation/proof")
async def prove_host(services: With, _: Admin, challenge: HostChallenge) -> HostProof:
    """Answer a verifier's challenge by this host's TPM."""
    return await services.attesting.prove(challenge)


@router.put("/v1/host/verifier")
async def link_verifier(services: With, _: Admin, link: VerifierLink) -> VerifierView:
    """Attest to this verifier from now on."""
    return await services.attesting.link(link)


@router.get("/v1/host/verifier")
async def show_verifier(services: With, _: Viewer) -> VerifierView:
    return await services.attesting.verifier()


@router.delete("/v1/host/verifier", status_code=204)
async def unlink_verifier(services: With, _: Admin) -> None:
    await services.attesting.unlink()


@router.post("/v1/host/attest")
async def attest_host(services: With, _: Admin) -> HostStanding:
    """Attest to the verifier now."""
    return await services.attesting.attest()


@router.get("/v1/trust/hosts")
async def list_attested_hosts(services: With, _: Viewer, paging: Paging) -> Page[EnrolledHost]:
    return await services.attested_hosts.page(paging)


@router.post("/v1/trust/hosts")
async def enrol_host(services: With, _: Admin, request: HostEnrol) -> HostChallenge:
    """Begin to know a host; it is known once it has answered the challenge."""
    return await services.verifier.enrol(request)


@router.post("/v1/trust/hosts/proof", status_code=201)
async def finish_enrolment(services: With, _: Admin, proof: HostProof) -> EnrolledHost:
    return await services.verifier.finish(proof)


@router.delete("/v1/trust/hosts/{name}", status_code=204)
async def forget_host(services: With, _: Admin, name: str) -> None:
    await services.verifier.forget(name)


@router.post("/v1/trust/hosts/{host_id}/challenge")
async def challenge_host(services: With, _: Viewer, host_id: HostId) -> HostChallenge:
    return await services.verifier.challenge(host_id)


@router.post("/v1/trust/attest")
async def judge_host(services: With, _: Viewer, proof: HostProof) -> HostAttested:
    """A token, where the host is trusted; who asks may be anybody: the TPM's proof counts."""
    return await services.verifier.attest(proof)


@router.post("/v1/trust/release")
async def release_key(services: With, _: Viewer, request: ReleaseRequest) -> WrappedForHost:
    """A key that only the host of the token opens, in the boot state demanded of it."""
    return await services.verifier.release(request)
