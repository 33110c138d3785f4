"""Secrets kept for a VM, and given to its guest only while its verdict holds.

    <VM folder>/secrets/<name>.hfsecret     a container that the host key opens (`trust.envelope`)

    attest ─▶ passed? ─▶ credential for the enrolled TPM and its attestation key ─▶ the TPM answers
      ─▶ the file is written in the guest ─▶ event

The TPM that was just judged stays open until it has answered, so that nothing else can stand in for
it. What was given cannot be taken back: a guest that fails later keeps what it had.
"""

import asyncio
import base64
import binascii
import datetime
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from holdfast.catalog.events import EventLog
from holdfast.host.files import sync_folder, write_atomic
from holdfast.host.threads import to_its_end
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.errors import Failed, InvalidInput, NotFound
from holdfast.spec.operation import Operation
from holdfast.spec.released import MAX_SECRET, SecretAdd, SecretRelease, SecretView
from holdfast.spec.vm_requests import ExecRequest
from holdfast.trust import envelope
from holdfast.trust.bounded import read_bounded
from holdfast.trust.changing import changing
from holdfast.trust.host_key import HostKeys
from holdfast.trust.protection import HostLock
from holdfast.trust.rotation import KEPT_SUFFIX
from holdfast.trust.tpm.credential import make_credential
from holdfast.vm.attestation import Attestation
from holdfast.vm.guest_evidence import Progress, TpmOfOther, fingerprint
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

GUEST_FOLDER = "/run/holdfast/secrets"
_SECONDS = 60.0
# By standard input, so that nobody in the guest sees it among the arguments; whole or not there.
_WRITE = """\
umask 077
mkdir -p "$(dirname "$1")" && base64 -d >"$1.$$" && mv -f "$1.$$" "$1"
"""


class SecretNotFound(NotFound):
    id = "secret-not-found"


class BadSecret(InvalidInput):
    id = "bad-secret"


class SecretNotWritten(Failed):
    id = "secret-not-written"


@dataclass(frozen=True)
class _Kept:
    vm: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(KEPT_SUFFIX)


class GuestSecrets:
    """Owner of the folders `secrets` of VMs."""

    def __init__(
        self,
        rooms: Rooms,
        attestation: Attestation,
        operations: Operations,
        named: Callable[[str], Awaitable[VmOwner]],
    ) -> None:
        self._rooms = rooms
        self._attestation = attestation
        self._operations = operations
        self._named = named

    @property
    def _keys(self) -> HostKeys:
        return self._rooms.host_keys

    @property
    def _events(self) -> EventLog:
        return self._rooms.events

    async def add(self, name: str, request: SecretAdd) -> SecretView:
        """Keep a secret for a VM, in place of one of the same name.

        Raises:
            BadSecret: its content is not base64, is empty, or is longer than 64 KiB.
        """
        content = _decoded(request.content)
        kept = await self._kept(name, request.name)
        facts = {"kind": "secret", "vm": kept.vm, "name": request.name, "size": len(content)}

        def put(sealed: bytes) -> None:
            with changing:
                if not kept.path.parent.is_dir():
                    kept.path.parent.mkdir(mode=0o700)
                    sync_folder(kept.path.parent.parent)
                write_atomic(kept.path, sealed)

        async with self._keys.wrapping() as ring:
            sealed = envelope.seal(facts, content, HostLock(ring))
            await to_its_end(put, sealed)
        await self._events.emit("trust.secret-stored", name, {"id": kept.vm, "secret": request.name})
        return await asyncio.to_thread(_view, kept)

    async def list(self, name: str) -> tuple[SecretView, ...]:
        owner = await self._named(name)
        folder = self._folder(owner)

        def look() -> tuple[SecretView, ...]:
            files = sorted(folder.glob(f"*{KEPT_SUFFIX}")) if folder.is_dir() else []
            return tuple(_view(_Kept(owner.record.id, path)) for path in files)

        return await asyncio.to_thread(look)

    async def delete(self, name: str, secret: str) -> None:
        kept = await self._kept(name, secret)

        def remove() -> None:
            with changing:
                kept.path.unlink()

        try:
            await to_its_end(remove)
        except FileNotFoundError as error:
            raise _not_found(name, secret) from error
        await self._events.emit("trust.secret-deleted", name, {"id": kept.vm, "secret": secret})

    async def release(self, name: str, request: SecretRelease, actor: str) -> Operation:
        """As an operation, whose result says where it lies and by which verdict.

        Raises:
            SecretNotFound; and what an attestation refuses beforehand.
        """
        kept = await self._kept(name, request.name)
        if not kept.path.is_file():
            raise _not_found(name, request.name)
        vm_id = await self._attestation.require_attestable(name)
        path = request.path or f"{GUEST_FOLDER}/{request.name}"
        params = {"vm": vm_id, "secret": request.name, "to": path}
        return await self._operations.submit("vm.release-secret", name, params, actor)

    async def give(self, vm_id: str, secret: str, to: str, actor: str, progress: Progress) -> int:
        """Attest, and write the secret into the guest that passed; returns the verdict's number.

        Raises:
            VerdictFailed: the guest does not pass; it was given nothing.
            SecretNotWritten: it passed, and could not take the file.
        """
        kept = await self._kept(vm_id, secret)
        content = await self._content(kept, vm_id)
        async with self._attestation.trusted(vm_id, progress) as guest:
            endorsement = await guest.attesting.endorsement()
            value = secrets.token_bytes(32)
            credential = make_credential(endorsement.public, guest.attesting.name, value)
            answer = await guest.attesting.activate(credential)
            if fingerprint(endorsement.public) != guest.endorsement or not compare_digest(answer, value):
                raise TpmOfOther("the TPM that was judged is not the one that answers", value=vm_id)
            # Told first: a guest that takes the secret can keep silent about it.
            number = guest.verdict.number
            data = {"id": kept.vm, "secret": secret, "to": to, "verdict": number, "actor": actor}
            await self._events.emit("trust.secret-released", guest.verdict.vm, data)
            await _write(guest.agent, to, content)
        return number

    async def _content(self, kept: _Kept, name: str) -> bytes:
        """No new host key comes into use between the look at the ring and at the file that it opens."""
        async with self._keys.wrapping() as ring:
            try:
                data = await to_its_end(read_bounded, kept.path, envelope.LONGEST)
            except FileNotFoundError as error:
                raise _not_found(name, kept.name) from error
            taken = envelope.parse(data)
            _require_of(taken, kept)
            return taken.open(HostLock(ring))

    async def _kept(self, name: str, secret: str) -> _Kept:
        owner = await self._named(name)
        if "/" in secret or secret.startswith("."):
            raise _not_found(name, secret)
        return _Kept(owner.record.id, self._folder(owner) / f"{secret}{KEPT_SUFFIX}")

    def _folder(self, owner: VmOwner) -> Path:
        return self._rooms.state.vm(owner.record.name) / "secrets"


class _Give:
    title = "attest the guest and give it the secret"
    weight = 1.0

    def __init__(self, kept: GuestSecrets) -> None:
        self._kept = kept

    async def do(self, job: Job) -> None:
        vm, secret, to = (job.params[each] for each in ("vm", "secret", "to"))
        job.notes["verdict"] = await self._kept.give(vm, secret, to, job.actor, job.progress)

    async def undo(self, job: Job) -> None:
        """Nothing: a guest that failed was given nothing, and what was given cannot be taken back."""


def procedures(kept: GuestSecrets) -> list[Procedure]:
    def result(job: Job) -> dict[str, object]:
        return {"secret": job.params["secret"], "to": job.params["to"], "verdict": job.notes["verdict"]}

    return [Procedure("vm.release-secret", (_Give(kept),), result)]


def _decoded(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSecret("the secret is not base64", cure="Encode its bytes as RFC 4648 says.") from error
    if not 0 < len(content) <= MAX_SECRET:
        raise BadSecret(
            f"a secret of {len(content)} bytes",
            value=len(content),
            cure=f"Give 1 to {MAX_SECRET} bytes; of larger things give the key to them.",
        )
    return content


async def _write(agent: GuestAgent, to: str, content: bytes) -> None:
    request = ExecRequest(
        argv=("/bin/sh", "-c", _WRITE, "sh", to),
        stdin=base64.b64encode(content).decode("ascii"),
        timeout_seconds=_SECONDS,
    )
    done = await agent.execute(request)
    if done.exit_code != 0:
        raise SecretNotWritten(
            f"the guest passed, but {to!r} could not be written there",
            value=to,
            cure="Choose another path in the guest with --to.",
            detail={"said": done.stderr[:500]},
        )


def _require_of(taken: envelope.Envelope, kept: _Kept) -> None:
    """Files may have been swapped on the disk: what it was sealed as decides."""
    facts = taken.facts()
    if (facts.get("kind"), facts.get("vm"), facts.get("name")) != ("secret", kept.vm, kept.name):
        raise SecretNotFound(
            f"what lies in place of the secret {kept.name!r} is another",
            value=kept.name,
            cure="Store the secret again with `holdfast trust secret add`.",
        )


def _view(kept: _Kept) -> SecretView:
    facts = envelope.parse(read_bounded(kept.path, envelope.LONGEST)).facts()
    stored = datetime.datetime.fromtimestamp(kept.path.stat().st_mtime, datetime.UTC)
    return SecretView(name=kept.name, size=int(facts.get("size", 0)), stored=stored)


def _not_found(name: str, secret: str) -> SecretNotFound:
    return SecretNotFound(
        f"no secret {secret[:64]!r} is kept for VM {name!r}",
        value=secret[:64],
        cure=f"See `holdfast trust secret list {name}`.",
    )
