"""The steps of an enrolment, between the verifier's daemon and the host's; safe to repeat."""

import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from holdfast.api.client import Client
from holdfast.spec.errors import RemoteError


def name_of(url: str) -> str:
    """The host in an address."""
    return urlsplit(url).hostname or url


def enrol(
    verifier: Client, host: Client, name: str, address: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Make `verifier`, which `host` reaches at `address`, know `host`; the record in wire form.

    Raises:
        RemoteError: the words of whichever refused.
    """
    say("asking the host's TPM who it is ...")
    identity = host.wire("GET", "/v1/host/attestation")
    challenge = verifier.wire("POST", "/v1/trust/hosts", {"name": name, "identity": identity})
    say("the host proves it, and what it has booted ...")
    proof = host.wire("POST", "/v1/host/attestation/proof", challenge)
    enrolled: dict[str, Any] = verifier.wire("POST", "/v1/trust/hosts/proof", proof)
    token = _token(verifier, enrolled["id"])
    link = {
        "url": address,
        "fingerprint": token["fingerprint"],
        "token": token["secret"],
        "host": enrolled["id"],
    }
    host.wire("PUT", "/v1/host/verifier", link)
    say("the host attests to this verifier ...")
    host.wire("POST", "/v1/host/attest")
    return enrolled


def _token(verifier: Client, host_id: str) -> Any:
    """A token for the host; one from an earlier enrolment is revoked."""
    name = f"host-{host_id[:16]}"
    with contextlib.suppress(RemoteError):
        verifier.wire("DELETE", f"/v1/tokens/{quote(name, safe='')}")
    return verifier.wire("POST", "/v1/tokens", {"name": name, "role": "viewer"})
