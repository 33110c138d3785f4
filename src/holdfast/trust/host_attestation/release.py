"""Secrets wrapped to one host's TPM, which opens them only while its PCRs are as they were demanded.

A fresh AES-256-GCM key (NIST SP 800-38D) goes as a TPM credential; the secret is encrypted with it, bound
to what it is for. The credential names the host's endorsement key and its RELEASE key: a primary key
made of a template whose policy is PolicyPCR over the demanded values. So the TPM itself refuses, also
where what was released is recorded and shown to it after another boot. Who made the release key does not
matter: its Name holds the policy, and the endorsement key says which TPM enforces it.
"""

import secrets
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.spec.errors import Failed, Forbidden
from holdfast.spec.host_attestation import EnrolledHost, WrappedForHost
from holdfast.trust.attestation_key import endorsement_key
from holdfast.trust.tpm.credential import Credential, make_credential
from holdfast.trust.tpm.numbers import Permanent
from holdfast.trust.tpm.pcrs import PcrSelection, PcrValues
from holdfast.trust.tpm.public import Public, release_template
from holdfast.trust.tpm.tpm import Tpm

_KEY = 32
_NONCE = 12
MOST = 2048
"""Bytes of a secret."""


class ReleaseKeyUnfit(Forbidden):
    """The key that a host wants something wrapped to is not bound to the boot state demanded of it."""

    id = "release-key-unfit"


class NotWrappedForUs(Failed):
    id = "not-wrapped-for-this-host"


def wrap_for_host(host: EnrolledHost, release_key: Public, secret: bytes, purpose: str) -> WrappedForHost:
    """Only `host`'s TPM opens it, only in the boot state demanded, and only for the same `purpose`.

    Raises:
        ReleaseKeyUnfit: `release_key` is not bound to that boot state.
    """
    if len(secret) > MOST:
        raise ValueError(f"at most {MOST} bytes are wrapped, not {len(secret)}")
    values = {pcr: bytes.fromhex(value) for pcr, value in host.pcrs.items()}
    template = release_template(PcrSelection.of(values).activation_policy(values))
    if replace(release_key, unique=template.unique) != template:
        raise ReleaseKeyUnfit(
            f"the release key of host {host.name!r} is not bound to the boot state demanded of it",
            value=host.name,
            cure="Attest again; if the host was changed on purpose, `holdfast trust enrol` it anew.",
        )
    key, nonce = secrets.token_bytes(_KEY), secrets.token_bytes(_NONCE)
    credential = make_credential(Public.decode(bytes.fromhex(host.endorsement)), release_key.name, key)
    sealed = AESGCM(key).encrypt(nonce, secret, _bound(purpose))
    return WrappedForHost(credential=credential.encode().hex(), nonce=nonce.hex(), sealed=sealed.hex())


async def release_key(tpm: Tpm, values: PcrValues) -> Public:
    """This host's release key for PCRs that have these values."""
    template = release_template(PcrSelection.of(values).activation_policy(values))
    async with tpm.primary(Permanent.ENDORSEMENT, template) as key:
        return key.public


async def unwrap_on_host(tpm: Tpm, wrapped: WrappedForHost, values: PcrValues, purpose: str) -> bytes:
    """Open what a verifier wrapped to `release_key(tpm, values)`.

    Raises:
        TpmRefused: for another TPM (reason `integrity`), or the PCRs are others now (reason `value`).
        NotWrappedForUs: altered, or for another purpose.
    """
    selection = PcrSelection.of(values)
    credential = Credential.decode(bytes.fromhex(wrapped.credential))
    async with (
        tpm.primary(Permanent.ENDORSEMENT, release_template(selection.activation_policy(values))) as mine,
        endorsement_key(tpm) as (endorsement, _),
        tpm.policy_session() as booted,
        tpm.policy_session() as policy,
    ):
        await tpm.policy_pcr(booted, selection, values)
        await tpm.policy_activate(booted)
        await tpm.policy_secret(policy, Permanent.ENDORSEMENT)
        key = await tpm.activate_credential(
            mine, endorsement, policy, credential.blob, credential.secret, booted
        )
    try:
        nonce, sealed = bytes.fromhex(wrapped.nonce), bytes.fromhex(wrapped.sealed)
        return AESGCM(key).decrypt(nonce, sealed, _bound(purpose))
    except (InvalidTag, ValueError) as error:
        raise NotWrappedForUs(
            f"what the verifier sent for {purpose} is for something else, or was altered",
            value=purpose,
            cure="Try again; if it stays so, enrol this host anew.",
        ) from error


def _bound(purpose: str) -> bytes:
    return b"holdfast release 1\0" + purpose.encode()
