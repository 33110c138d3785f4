"""The way to another daemon's TLS door as to a verifier, over the API's own client."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from holdfast.api.client import Client, Place
from holdfast.spec.errors import Failed
from holdfast.spec.host_attestation import (
    HostAttested,
    HostChallenge,
    HostProof,
    ReleaseRequest,
    VerifierLink,
    WrappedForHost,
)
from holdfast.spec.model import Frozen

M = TypeVar("M", bound=Frozen)


class VerifierNonsense(Failed):
    id = "verifier-nonsense"


class TlsVerifierDoor:
    """Every method raises RemoteError for a refusal, WrongFingerprint, and DaemonNotReachable."""

    async def challenge(self, link: VerifierLink) -> HostChallenge:
        answer = await _ask(link, lambda it: it.wire("POST", f"/v1/trust/hosts/{link.host}/challenge"))
        return _read(HostChallenge, answer)

    async def attest(self, link: VerifierLink, proof: HostProof) -> HostAttested:
        answer = await _ask(link, lambda it: it.wire("POST", "/v1/trust/attest", proof))
        return _read(HostAttested, answer)

    async def release(self, link: VerifierLink, request: ReleaseRequest) -> WrappedForHost:
        answer = await _ask(link, lambda it: it.wire("POST", "/v1/trust/release", request))
        return _read(WrappedForHost, answer)


def _read(model: type[M], answer: Any) -> M:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise _nonsense(error) from error


async def _ask(link: VerifierLink, call: Callable[[Client], Any]) -> Any:
    def ask() -> Any:
        place = Place(url=link.url, fingerprint=link.fingerprint, token=link.token.get_secret_value())
        try:
            with Client(place) as client:
                return call(client)
        except (ValueError, httpx.HTTPError) as error:
            raise _nonsense(error) from error

    return await asyncio.to_thread(ask)


def _nonsense(error: Exception) -> VerifierNonsense:
    return VerifierNonsense(
        "the verifier's answer cannot be understood",
        value=type(error).__name__,
        cure="See that its address is that of a Holdfast of this version.",
    )
