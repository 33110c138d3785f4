"""A TPM as the one who attests: its identity, its attestation key, and what it says with it.

The same for a VM's TPM and for the host's. The attestation key is a primary key of the endorsement
hierarchy from a fixed template: one TPM always makes the same, so that nothing is stored in it. That it
is of the TPM whose endorsement key is known is shown by credential activation (`trust.tpm.credential`).
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from holdfast.spec.errors import Unsupported
from holdfast.trust.endorsement_certificate import certifies
from holdfast.trust.tpm.credential import Credential
from holdfast.trust.tpm.numbers import (
    EK_CERTIFICATE_ECC,
    EK_CERTIFICATE_RSA,
    EK_ECC,
    EK_RSA,
    HandleKind,
    Permanent,
)
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.tpm.public import ATTESTATION_TEMPLATE, EK_TEMPLATE_ECC, EK_TEMPLATE_RSA, Public
from holdfast.trust.tpm.refusals import TpmRefused
from holdfast.trust.tpm.tpm import Key, RawQuote, Tpm


@dataclass(frozen=True)
class _Kind:
    handle: int
    certificate: int
    """NV index."""
    template: Public


_KINDS = (
    _Kind(EK_RSA, EK_CERTIFICATE_RSA, EK_TEMPLATE_RSA),
    _Kind(EK_ECC, EK_CERTIFICATE_ECC, EK_TEMPLATE_ECC),
)


_NOT_THIS_KIND = ("value", "curve", "symmetric", "scheme", "hash")


class NoEndorsementKey(Unsupported):
    id = "no-endorsement-key"


@dataclass(frozen=True)
class Endorsement:
    """What identifies a TPM for ever."""

    public: Public
    certificate: bytes | None
    """DER, as the TPM holds it and not verified; None where it holds none."""


class Attester:
    """A TPM with its attestation key loaded; from `attester`."""

    def __init__(self, tpm: Tpm, key: Key) -> None:
        self._tpm = tpm
        self.key = key

    @property
    def public(self) -> Public:
        """Of the attestation key."""
        return self.key.public

    @property
    def name(self) -> bytes:
        return self.key.public.name

    async def endorsement(self) -> Endorsement:
        """The endorsement key with its certificate; RSA where the TPM has both kinds.

        Raises:
            NoEndorsementKey: the TPM makes neither an RSA 2048 nor an ECC P-256 one.
        """
        async with endorsement_key(self._tpm) as (key, certificate):
            return Endorsement(key.public, certificate)

    async def activate(self, credential: Credential) -> bytes:
        """Answer a challenge that was made for our endorsement key and our attestation key.

        Raises:
            TpmRefused: reason `integrity` or `value`, where it was made for others.
        """
        async with endorsement_key(self._tpm) as (key, _), self._tpm.policy_session() as policy:
            await self._tpm.policy_secret(policy, Permanent.ENDORSEMENT)
            return await self._tpm.activate_credential(
                self.key, key, policy, credential.blob, credential.secret
            )

    async def quote(self, nonce: bytes, selection: PcrSelection) -> RawQuote:
        """What the PCRs hold now, signed over a nonce of at most 32 bytes."""
        return await self._tpm.quote(self.key, nonce, selection)


@contextlib.asynccontextmanager
async def endorsement_key(tpm: Tpm) -> AsyncIterator[tuple[Key, bytes | None]]:
    """The endorsement key for use, and its certificate (DER) if the TPM has one. Raises NoEndorsementKey."""
    persistent = await tpm.handles(HandleKind.PERSISTENT)
    async for kind, certificate in _kinds(tpm):
        if kind.handle in persistent:
            key = await tpm.read_public(kind.handle)
            if _is_endorsement_key(key.public, kind.template, certificate):
                yield key, certificate
                return
        async with contextlib.AsyncExitStack() as stack:
            try:
                made = tpm.primary(Permanent.ENDORSEMENT, kind.template)
                key = await stack.enter_async_context(made)
            except TpmRefused as refused:
                if refused.reason in _NOT_THIS_KIND:
                    continue
                raise
            yield key, certificate
            return
    raise NoEndorsementKey(
        "the TPM makes neither an RSA 2048 nor an ECC P-256 endorsement key",
        value=[kind.template.kind for kind in _KINDS],
        cure="Use a TPM 2.0 of the PC Client profile.",
    )


async def _kinds(tpm: Tpm) -> AsyncIterator[tuple[_Kind, bytes | None]]:
    """Those with a certificate first: their maker vouches for them."""
    bare = []
    for kind in _KINDS:
        certificate = await tpm.nv_read(kind.certificate)
        if certificate:
            yield kind, certificate
        else:
            bare.append(kind)
    for kind in bare:
        yield kind, None


@contextlib.asynccontextmanager
async def attester(tpm: Tpm) -> AsyncIterator[Attester]:
    """Load the attestation key; it is flushed where the block ends."""
    async with tpm.primary(Permanent.ENDORSEMENT, ATTESTATION_TEMPLATE) as key:
        yield Attester(tpm, key)


def _is_endorsement_key(public: Public, template: Public, certificate: bytes | None) -> bool:
    """Anybody may put another key at the handle: it must be of the template, and the certified one."""
    alike = (public.kind, public.attributes, public.policy) == (
        template.kind,
        template.attributes,
        template.policy,
    )
    return alike and (certificate is None or certifies(certificate, public))
