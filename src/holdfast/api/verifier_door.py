"""The way to another daemon's TLS door as to a verifier, over the API's own client."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from holdfast.api.client import Client, Place
from holdfast.spec.host_attestation import (
    HostAttested,
    HostChallenge,
    HostProof,
    ReleaseRequest,
    VerifierLink,
    WrappedForHost,
)

T = TypeVar("T")


class TlsVerifierDoor:
    """Every method raises RemoteError for a refusal, WrongFingerprint, and DaemonNotReachable."""

    async def challenge(self, link: VerifierLink) -> HostChallenge:
        answer = await _ask(link, lambda it: it.wire("POST", f"/v1/trust/hosts/{link.host}/challenge"))
        return HostChallenge.model_validate(answer)

    async def attest(self, link: VerifierLink, proof: HostProof) -> HostAttested:
        answer = await _ask(link, lambda it: it.wire("POST", "/v1/trust/attest", proof))
        return HostAttested.model_validate(answer)

    async def release(self, link: VerifierLink, request: ReleaseRequest) -> WrappedForHost:
        answer = await _ask(link, lambda it: it.wire("POST", "/v1/trust/release", request))
        return WrappedForHost.model_validate(answer)


async def _ask(link: VerifierLink, call: Callable[[Client], Any]) -> Any:
    def ask() -> Any:
        place = Place(url=link.url, fingerprint=link.fingerprint, token=link.token.get_secret_value())
        with Client(place) as client:
            return call(client)

    return await asyncio.to_thread(ask)
