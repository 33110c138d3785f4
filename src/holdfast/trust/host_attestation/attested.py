"""This host before its verifier: it attests whenever it needs a key, and opens what is released to it.

keys/verifier.json     address, fingerprint and token of the verifier that has enrolled this host (0600)
"""

import asyncio
import json
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import ValidationError

from holdfast.host.files import sync_folder, write_atomic
from holdfast.spec.errors import Failed, HoldfastError, NotFound
from holdfast.spec.host_attestation import (
    HostAttested,
    HostChallenge,
    HostIdentity,
    HostProof,
    HostStanding,
    Pcrs,
    ReleaseRequest,
    VerifierLink,
    VerifierView,
    WrappedForHost,
)
from holdfast.trust.host_attestation.host import AttestingHost

log = structlog.get_logger(__name__)

_MAX_LINK = 8192
_EVERY = 300.0  # seconds


class NoVerifier(NotFound):
    id = "no-verifier"


class VerifierLinkDamaged(Failed):
    id = "verifier-link-damaged"


class VerifierDoor(Protocol):
    """Speaks to a verifier over its TLS door. Raises its refusals, or that it does not answer."""

    async def challenge(self, link: VerifierLink) -> HostChallenge: ...
    async def attest(self, link: VerifierLink, proof: HostProof) -> HostAttested: ...
    async def release(self, link: VerifierLink, request: ReleaseRequest) -> WrappedForHost: ...


class AttestedHost:
    """Owner of the link to the verifier."""

    def __init__(self, host: AttestingHost, keys: Path, door: VerifierDoor) -> None:
        self._host = host
        self._file = keys / "verifier.json"
        self._door = door

    async def identity(self) -> HostIdentity:
        return await self._host.identity()

    async def prove(self, challenge: HostChallenge) -> HostProof:
        return await self._host.prove(challenge)

    async def link(self, link: VerifierLink) -> VerifierView:
        """Attest to this verifier from now on."""
        stored = link.model_dump(mode="json") | {"token": link.token.get_secret_value()}
        await asyncio.to_thread(write_atomic, self._file, json.dumps(stored).encode(), 0o600)
        return _view(link)

    async def verifier(self) -> VerifierView:
        """Raises NoVerifier."""
        return _view(await self._link())

    async def unlink(self) -> None:
        """Attest to nobody any more. Safe to repeat."""

        def remove() -> None:
            self._file.unlink(missing_ok=True)
            sync_folder(self._file.parent)

        await asyncio.to_thread(remove)

    async def attest(self) -> HostStanding:
        """Attest now.

        Raises:
            NoVerifier: no verifier has enrolled this host.
            HostNotTrusted and others: the verifier's words.
        """
        link = await self._link()
        attested, _ = await self._attest(link)
        return HostStanding(verifier=link.url, verdict=attested.verdict, expires=attested.expires)

    async def keep_attesting(self) -> None:
        """For ever: attest now and then, so that the verifier learns of a change that nobody asks about."""
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.attest()
            except NoVerifier:
                continue
            except HoldfastError as error:
                log.warning("this host does not attest", error=error.message, cure=error.cure)
            except Exception:
                log.exception("this host does not attest")

    async def guard_key(self, vm_id: str, make: bool = False) -> bytes:
        """The 32 bytes that guard a VM's key; the verifier gives them while it trusts this host.

        Raises as `attest`; GuardKeyMissing where the verifier has none and `make` is not set.
        """
        link = await self._link()
        attested, pcrs = await self._attest(link)
        request = ReleaseRequest(
            token=attested.token,
            release_key=await self._host.release_key(pcrs),
            purpose=f"vm {vm_id}",
            make=make,
        )
        wrapped = await self._door.release(link, request)
        return await self._host.unwrap(wrapped, pcrs, request.purpose)

    async def _attest(self, link: VerifierLink) -> tuple[HostAttested, Pcrs]:
        proof = await self._host.prove(await self._door.challenge(link))
        return await self._door.attest(link, proof), proof.evidence.pcrs

    async def _link(self) -> VerifierLink:
        try:
            data = await asyncio.to_thread(_read, self._file)
            return VerifierLink.model_validate_json(data)
        except FileNotFoundError as error:
            raise NoVerifier(
                "no verifier has enrolled this host",
                cure="Run `holdfast trust enrol` for this host at another one, which becomes its verifier.",
            ) from error
        except ValidationError:
            raise VerifierLinkDamaged(
                f"{self._file} does not say where the verifier is",
                value=str(self._file),
                cure="Run `holdfast trust enrol` for this host at its verifier again.",
            ) from None  # what was read may hold the token


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_LINK + 1)


def _view(link: VerifierLink) -> VerifierView:
    return VerifierView(url=link.url, fingerprint=link.fingerprint, host=link.host)
