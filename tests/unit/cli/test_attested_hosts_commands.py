"""Commands about attested hosts: what they print, and their refusals."""

import json
from typing import Any

import httpx
from command_line import run

from holdfast.spec.access import Role
from holdfast.spec.token import TokenCreate


def test_hosts_are_listed_for_people_and_programs(daemon: Any) -> None:
    table = run(daemon, "trust", "hosts").stdout
    assert "alpha" in table and "not certified" in table
    (host,) = json.loads(run(daemon, "trust", "hosts", "--format", "json").stdout)
    assert host["name"] == "alpha" and host["pcrs"] == {"0": "11" * 32} and host["last"] is None


def test_refusals_keep_their_words_and_codes(daemon: Any) -> None:
    assert run(daemon, "trust", "forget", "beta").returncode == 3
    enrol = run(daemon, "trust", "enrol", "https://beta:8443", "--format", "json")
    assert enrol.returncode == 2 and json.loads(enrol.stderr)["id"] == "no-verifier-address"


def test_a_viewer_may_look_and_not_enrol(tls_daemon: Any) -> None:
    made = tls_daemon.call(tls_daemon.tokens.create(TokenCreate(name="looking", role=Role.VIEWER)))
    headers = {"Authorization": f"Bearer {made[1]}"}
    with httpx.Client(base_url=tls_daemon.url, verify=False, headers=headers) as raw:
        assert raw.get("/v1/trust/hosts").status_code == 200
        for method, path in [
            ("DELETE", "/v1/trust/hosts/alpha"), ("POST", "/v1/host/attest"),
            ("GET", "/v1/host/attestation"), ("DELETE", "/v1/host/verifier"),
        ]:  # fmt: skip
            assert raw.request(method, path).status_code == 403
