"""The commands of a TPM 2.0 that we use, whichever way it is reached.

Trusted Platform Module Library, part 3, by its names. A `Tpm` keeps nothing but its transport: what it
loads is flushed where the block ends, and nothing is ever made persistent.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from holdfast.trust.tpm.exchange import Exchange, Request, Response, TpmTransport
from holdfast.trust.tpm.numbers import Algorithm, Code, HandleKind, Permanent, SessionKind
from holdfast.trust.tpm.pcrs import PcrSelection, PcrValues
from holdfast.trust.tpm.protection import share_seed
from holdfast.trust.tpm.public import Public
from holdfast.trust.tpm.refusals import TpmRefused
from holdfast.trust.tpm.sessions import (
    NONCE_SIZE,
    EmptyPassword,
    EncryptingSession,
    Entity,
    PolicySession,
    permanent,
)
from holdfast.trust.tpm.wire import Reader, TpmNonsense, sized, u8, u16, u32

_NO_SYMMETRIC = u16(Algorithm.NULL)
_AES_128_CFB = u16(Algorithm.AES) + u16(128) + u16(Algorithm.CFB)
_NV_CHUNK = 512
"""Bytes read at a time; every TPM of the PC Client profile gives so many."""
_NV_AUTHREAD = 1 << 18
"""TPMA_NV_AUTHREAD (part 2, section 13.4): by the index's own password, which an EK certificate has not."""
_MAX_NV = 16 * 1024
_STARTUP_CLEAR = 0x0000
_PCRS_AT_ONCE = 8
_CAPABILITY_HANDLES = 0x00000001
_MAX_HANDLES = 254


@dataclass(frozen=True)
class Key:
    """A loaded or persistent object."""

    handle: int
    public: Public

    @property
    def entity(self) -> Entity:
        return Entity(self.handle, self.public.name)


@dataclass(frozen=True)
class Sealed:
    """A child object as its parent protects it: TPM2B contents."""

    public: Public
    private: bytes


@dataclass(frozen=True)
class RawQuote:
    attest: bytes
    """TPMS_ATTEST, as signed."""
    signature: bytes
    """TPMT_SIGNATURE."""


class Tpm:
    """Every method raises TpmRefused for an error of the TPM, TpmNonsense for an answer that is none,
    and TpmNotReachable or TpmTooSlow where it does not answer."""

    def __init__(self, transport: TpmTransport) -> None:
        self._exchange = Exchange(transport)

    async def startup(self) -> None:
        """Start a TPM that nothing has started (an emulated one); harmless to a started one."""
        try:
            await self._exchange(Request(Code.Startup, parameters=u16(_STARTUP_CLEAR)))
        except TpmRefused as refused:
            if refused.reason != "not-started":  # TPM_RC_INITIALIZE: also the answer of one that is started
                raise

    async def flush_all(self) -> None:
        """Flush what an earlier caller left in a TPM without a resource manager, which we have alone."""
        # Loaded sessions of every kind are listed by the first; saved ones belong to a resource manager.
        for kind in (HandleKind.OBJECTS, HandleKind.HMAC_SESSIONS):
            for handle in await self.handles(kind):
                await self.flush(handle)

    async def read_public(self, handle: int) -> Key:
        answer = await self._exchange(Request(Code.ReadPublic, (permanent(handle),)))
        return Key(handle, Public.decode(answer.parameters.sized()))

    async def handles(self, kind: HandleKind) -> tuple[int, ...]:
        """The handles of this kind that are in use, in rising order; at most 254."""
        parameters = u32(_CAPABILITY_HANDLES) + u32(kind) + u32(_MAX_HANDLES)
        answer = (await self._exchange(Request(Code.GetCapability, parameters=parameters))).parameters
        answer.u8()
        if answer.u32() != _CAPABILITY_HANDLES:
            raise TpmNonsense("the TPM told another capability", value=_CAPABILITY_HANDLES)
        count = answer.u32()
        if count > _MAX_HANDLES:
            raise TpmNonsense(f"the TPM lists {count} handles", value=count)
        return tuple(answer.u32() for _ in range(count))

    async def nv_read(self, index: int) -> bytes | None:
        """The content of an NV index that needs no password, up to 16 KiB; None where there is none."""
        try:
            known = await self._exchange(Request(Code.NV_ReadPublic, (permanent(index),)))
        except TpmRefused as refused:
            if refused.reason == "handle":
                return None
            raise
        public, name = Reader(known.parameters.sized(), "the NV public area"), known.parameters.sized()
        public.take(4 + 2)  # index, nameAlg
        by_itself = bool(public.u32() & _NV_AUTHREAD)
        public.sized()  # policy
        size = public.u16()
        if size > _MAX_NV:
            raise TpmNonsense(f"NV index {index:#x} holds {size} bytes", value=size)
        entity = Entity(index, name)
        reader = entity if by_itself else permanent(Permanent.OWNER)
        content = b""
        while len(content) < size:
            request = Request(
                Code.NV_Read,
                (reader, entity),
                (EmptyPassword(),),
                u16(min(_NV_CHUNK, size - len(content))) + u16(len(content)),
            )
            part = (await self._exchange(request)).parameters.sized()
            if not 0 < len(part) <= _NV_CHUNK:
                raise TpmNonsense(f"NV index {index:#x} ends too early", value=len(content))
            content += part
        return content

    async def pcr_read(self, selection: PcrSelection) -> dict[int, bytes]:
        """Values of the SHA-256 bank. They may be of different moments; a quote's are of one.

        Raises:
            TpmNonsense: also where the TPM has no SHA-256 bank.
        """
        values: dict[int, bytes] = {}
        missing = selection.pcrs
        while missing:
            wanted = PcrSelection(missing[:_PCRS_AT_ONCE])
            answer = (await self._exchange(Request(Code.PCR_Read, parameters=wanted.encode()))).parameters
            answer.u32()  # the update counter
            told = PcrSelection.read(answer)
            if answer.u32() != len(told.pcrs) or not told.pcrs or not set(told.pcrs) <= set(wanted.pcrs):
                raise TpmNonsense("the TPM did not tell the PCRs asked for", value=list(told.pcrs))
            values |= {pcr: answer.sized() for pcr in told.pcrs}
            missing = tuple(pcr for pcr in missing if pcr not in values)
        return values

    async def pcr_extend(self, pcr: int, digest: bytes) -> None:
        """Extend the SHA-256 bank by a digest of 32 bytes."""
        parameters = u32(1) + u16(Algorithm.SHA256) + digest
        await self._exchange(Request(Code.PCR_Extend, (permanent(pcr),), (EmptyPassword(),), parameters))

    async def quote(self, key: Key, nonce: bytes, selection: PcrSelection) -> RawQuote:
        """What the TPM says of its PCRs at this moment, signed by a key that signs nothing else."""
        parameters = sized(nonce) + u16(Algorithm.NULL) + selection.encode()
        request = Request(Code.Quote, (key.entity,), (EmptyPassword(),), parameters)
        answer = (await self._exchange(request)).parameters
        return RawQuote(answer.sized(), answer.take(answer.left))

    @contextlib.asynccontextmanager
    async def primary(self, hierarchy: Permanent, template: Public) -> AsyncIterator[Key]:
        """The key that the hierarchy's seed and the template make: always the same of one TPM."""
        sensitive = sized(sized(b"") + sized(b""))
        parameters = sensitive + sized(template.encode()) + sized(b"") + u32(0)
        request = Request(
            Code.CreatePrimary, (permanent(hierarchy),), (EmptyPassword(),), parameters, answers_handle=True
        )
        async with self._loaded(await self._exchange(request)) as answer:
            yield Key(answer.handle, Public.decode(answer.parameters.sized()))

    async def create(
        self, parent: Key, secret: bytes, template: Public, session: EncryptingSession
    ) -> Sealed:
        """Data that only this TPM opens, and only by the template's policy; 128 bytes at most."""
        sensitive = sized(sized(b"") + sized(secret))
        request = Request(
            Code.Create,
            (parent.entity,),
            (EmptyPassword(), session),
            sensitive + sized(template.encode()) + sized(b"") + u32(0),
            hides_parameter=True,
        )
        answer = (await self._exchange(request)).parameters
        private = answer.sized()
        return Sealed(Public.decode(answer.sized()), private)

    @contextlib.asynccontextmanager
    async def load(self, parent: Key, sealed: Sealed) -> AsyncIterator[Key]:
        request = Request(
            Code.Load,
            (parent.entity,),
            (EmptyPassword(),),
            sized(sealed.private) + sized(sealed.public.encode()),
            answers_handle=True,
        )
        async with self._loaded(await self._exchange(request)) as answer:
            yield Key(answer.handle, sealed.public)

    async def unseal(self, item: Key, policy: PolicySession, session: EncryptingSession) -> bytes:
        request = Request(Code.Unseal, (item.entity,), (policy, session), hides_answer=True)
        return (await self._exchange(request)).parameters.sized()

    async def activate_credential(
        self,
        key: Key,
        endorsement: Key,
        policy: PolicySession,
        blob: bytes,
        secret: bytes,
        key_policy: PolicySession | None = None,
    ) -> bytes:
        """What somebody hid for the holder of `endorsement` that also holds `key`.

        `policy` is the endorsement key's, `key_policy` that of a key which has one. `blob` and `secret`
        are the contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
        """
        request = Request(
            Code.ActivateCredential,
            (key.entity, endorsement.entity),
            (key_policy or EmptyPassword(), policy),
            sized(blob) + sized(secret),
        )
        return (await self._exchange(request)).parameters.sized()

    @contextlib.asynccontextmanager
    async def policy_session(self) -> AsyncIterator[PolicySession]:
        request = Request(
            Code.StartAuthSession,
            (permanent(Permanent.NULL), permanent(Permanent.NULL)),
            parameters=_session(secrets.token_bytes(NONCE_SIZE), b"", SessionKind.POLICY, _NO_SYMMETRIC),
            answers_handle=True,
        )
        async with self._loaded(await self._exchange(request)) as answer:
            yield PolicySession(answer.handle)

    @contextlib.asynccontextmanager
    async def encrypting_session(self, key: Key) -> AsyncIterator[EncryptingSession]:
        """A session whose salt only the TPM that holds `key` (a storage key) can open."""
        nonce, salt = secrets.token_bytes(NONCE_SIZE), share_seed(key.public, "SECRET")
        request = Request(
            Code.StartAuthSession,
            (key.entity, permanent(Permanent.NULL)),
            parameters=_session(nonce, salt.encrypted, SessionKind.HMAC, _AES_128_CFB),
            answers_handle=True,
        )
        async with self._loaded(await self._exchange(request)) as answer:
            yield EncryptingSession(answer.handle, salt.seed, nonce, answer.parameters.sized())

    async def policy_secret(self, policy: PolicySession, hierarchy: Permanent) -> None:
        """Prove to a policy session that the hierarchy's password (none) is known."""
        parameters = sized(b"") * 3 + u32(0)  # nonceTPM, cpHashA, policyRef; expiration
        handles = (permanent(hierarchy), policy.entity)
        await self._exchange(Request(Code.PolicySecret, handles, (EmptyPassword(),), parameters))

    async def policy_pcr(self, policy: PolicySession, selection: PcrSelection, values: PcrValues) -> None:
        """Bind a policy session to PCR values; refused with reason `value` where they are others now."""
        parameters = sized(selection.digest(values)) + selection.encode()
        await self._exchange(Request(Code.PolicyPCR, (policy.entity,), parameters=parameters))

    async def policy_activate(self, policy: PolicySession) -> None:
        """Bind a policy session to the one command ActivateCredential."""
        parameters = u32(Code.ActivateCredential)
        await self._exchange(Request(Code.PolicyCommandCode, (policy.entity,), parameters=parameters))

    async def flush(self, handle: int) -> None:
        await self._exchange(Request(Code.FlushContext, parameters=u32(handle)))

    @contextlib.asynccontextmanager
    async def _loaded(self, answer: Response) -> AsyncIterator[Response]:
        """Flushes what the answer names where the block ends; a failure of the block comes first."""
        try:
            yield answer
        except BaseException:
            with contextlib.suppress(Exception):
                await self.flush(answer.handle)
            raise
        await self.flush(answer.handle)


def _session(nonce: bytes, salt: bytes, kind: SessionKind, symmetric: bytes) -> bytes:
    return sized(nonce) + sized(salt) + u8(kind) + symmetric + u16(Algorithm.SHA256)
