"""`vm import vsphere://...`: where the password comes from, strange certificates, what is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run

ADDRESS = "vsphere://me@vcenter.example/Lab/web"


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("very secret\n")
    path.chmod(0o600)
    return path


def asked(daemon: Any, *arguments: str, **more: str) -> "tuple[int, Any, str]":
    done = run(daemon, "vm", "import", ADDRESS, *arguments, "--format", "json", **more)
    return done.returncode, json.loads(done.stdout or done.stderr), done.stderr


def test_a_vm_is_imported_with_what_was_said(daemon: Any, password: Path) -> None:
    code, wire, _ = asked(
        daemon,
        *("--password-file", str(password), "--thumbprint", "AA:BB", "--name", "here", "--warm"),
        *("--switch", "VM Network=lan", "--cut-over-at", "2030-01-02T03:04:05", "--no-tpm", "--start"),
        *("--pool", "fast", "--pool", "disk1=slow"),
    )
    assert code == 0 and wire["kind"] == "vm.import-vsphere"
    (request,) = daemon.vsphere.asked
    assert request.source.password.get_secret_value() == "very secret"
    assert (request.source.user, request.source.thumbprint) == ("me", "AA:BB")
    assert (request.name, request.warm, request.tpm, request.start) == ("here", True, False, True)
    assert request.pools == {"*": "fast", "disk1": "slow"}
    assert request.switches == {"VM Network": "lan"} and request.cut_over_at.tzinfo is not None


def test_a_server_is_listed_and_a_plan_shown(daemon: Any, password: Path) -> None:
    options = ("--password-file", str(password), "--thumbprint", "AA:BB")
    shown = run(daemon, "vm", "import", "vsphere://vc/", "--user", "you", "--list", *options)
    assert shown.returncode == 0 and "DC0" in shown.stdout and "web" in shown.stdout
    assert daemon.vsphere.asked[0].user == "you"
    plan = run(daemon, "vm", "import", ADDRESS, "--plan", *options)
    assert plan.returncode == 0 and "Importable" in plan.stdout


def test_a_strange_certificate_is_refused_with_its_thumbprint(daemon: Any, password: Path) -> None:
    code, wire, _ = asked(daemon, "--password-file", str(password))
    assert (code, wire["id"], wire["value"]) == (4, "vsphere-certificate-unknown", "AA:BB")


def test_the_password_comes_from_a_file_of_ones_own_the_environment_or_standard_input(
    daemon: Any, password: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password.chmod(0o644)
    code, wire, said = asked(daemon, "--password-file", str(password))
    assert (code, wire["id"]) == (2, "password-file-open") and "very secret" not in said
    monkeypatch.setenv("HOLDFAST_VSPHERE_PASSWORD", "from the environment")
    asked(daemon, "--thumbprint", "AA:BB")
    asked(daemon, "--thumbprint", "AA:BB", "--password-file", "-", typed="typed\n")
    given = [each.source.password.get_secret_value() for each in daemon.vsphere.asked]
    assert given == ["from the environment", "typed"]


def test_what_does_not_go_together_is_refused(daemon: Any, tmp_path: Path) -> None:
    for arguments, id_ in (
        (("vsphere://me:pass@vc/web",), "bad-vsphere-address"),
        (("vsphere://vc/web",), "no-vsphere-user"),
        ((ADDRESS, ADDRESS), "one-vsphere-source"),
        ((str(tmp_path), "--warm"), "only-from-vsphere"),
        ((ADDRESS, "--machine", "web"), "not-from-vsphere"),
        ((ADDRESS, "--same-tpm"), "not-from-vsphere"),
    ):
        done = run(daemon, "vm", "import", *arguments, "--format", "json", typed="x\n")
        assert (done.returncode, json.loads(done.stderr)["id"]) == (2, id_), done.stderr
        assert "pass@" not in done.stderr and not daemon.vsphere.asked
