"""`holdfast certs` against a daemon with fake VMs."""

import base64
import json
from pathlib import Path
from typing import Any

from command_line import run


def test_the_list_has_the_names_that_are_fixed(daemon: Any) -> None:
    (item,) = json.loads(run(daemon, "certs", "list", "--format", "json").stdout)
    assert (item["vm"], item["status"]) == ("web", "update-available")
    assert item["loader_signers"] == ["A CA", "B CA"]
    assert {"variable", "subject", "expires"} <= item["certificates"][0].keys()
    shown = run(daemon, "certs", "list")
    assert "update-available" in shown.stdout and "A CA, B CA" in shown.stdout


def test_show_escapes_what_a_certificate_says(daemon: Any) -> None:
    shown = run(daemon, "certs", "show", "web")
    assert shown.returncode == 0, shown.stderr
    assert "\\u202e" in shown.stdout and "\u202e" not in shown.stdout
    assert "uefi-ca-2023" in shown.stdout and "2030-01-02" in shown.stdout
    assert run(daemon, "certs", "show", "nobody").returncode == 3


def test_a_plan_is_printed_and_the_list_of_revocations_is_sent(daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "dbx").write_bytes(b"lists")
    shown = run(daemon, "certs", "plan", "web", "--dbx", str(tmp_path / "dbx"))
    assert shown.returncode == 0, shown.stderr
    assert "B CA" in shown.stdout and "PCR 7" in shown.stdout
    (asked,) = daemon.certificates.asked
    assert asked.vms == ("web",) and asked.dbx == b"lists" and not asked.all
    missing = run(daemon, "certs", "plan", "--all", "--dbx", "/no/such", "--format", "json")
    assert missing.returncode == 2 and json.loads(missing.stderr)["id"] == "no-such-file"


def test_update_rollback_and_enrol_ask_for_what_was_said(daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(b"a")
    assert run(daemon, "certs", "update", "--all", "--force").returncode == 0
    assert run(daemon, "certs", "rollback", "web").returncode == 0
    pem = str(tmp_path / "a.pem")
    made = run(daemon, "certs", "enrol", "web", "--pk", pem, "--db", pem, "--db", pem, "--replace")
    assert made.returncode == 0, made.stderr
    update, rollback, enrol = daemon.certificates.asked
    assert update.all and update.force and update.vms == ()
    assert rollback == "web"
    assert (enrol.pk, enrol.kek, enrol.db, enrol.replace) == (b"a", (), (b"a", b"a"), True)


def test_a_viewer_may_look_and_plan_but_not_change(tls_daemon: Any) -> None:
    import httpx

    from holdfast.spec.access import Role
    from holdfast.spec.token import TokenCreate

    _, secret = tls_daemon.call(tls_daemon.tokens.create(TokenCreate(name="v", role=Role.VIEWER)))
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=tls_daemon.url, headers=headers, verify=False) as client:
        assert client.get("/v1/certs").status_code == 200
        assert client.post("/v1/certs/plan", json={"all": True}).status_code == 200
        for path, body in (
            ("/v1/certs/update", {"all": True}),
            ("/v1/vms/web/certs/rollback", None),
            ("/v1/vms/web/certs/enrol", {"db": [base64.b64encode(b"a").decode()]}),
        ):
            assert client.post(path, json=body).json()["id"] == "role-too-low"
    assert len(tls_daemon.certificates.asked) == 1
