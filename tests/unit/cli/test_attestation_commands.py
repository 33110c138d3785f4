"""`holdfast trust` on VMs, as a person runs it, against a daemon with a fake verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from holdfast.spec.trust import Finding, Severity


def test_a_verdict_is_printed_and_decides_the_exit_code(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    passed = run(daemon, "trust", "attest", "web", "--format", "json")
    wire = json.loads(passed.stdout)
    assert passed.returncode == 0 and wire["verdict"] == "pass", passed.stderr
    assert wire["findings"] == [{"id": "quote-valid", "severity": "info", "text": "it is"}]
    assert {"pcrs", "chain"} <= wire.keys()
    changed = Finding(id="boot-chain-changed", severity=Severity.FAILURE, text="GRUB\x1b[31m was another")
    daemon.trust.verdict = daemon.trust.verdict.model_copy(update={"verdict": "fail", "findings": (changed,)})
    failed = run(daemon, "trust", "attest", "web")
    assert failed.returncode == 12
    assert "FAIL" in failed.stdout and "GRUB" in failed.stdout and "\x1b" not in failed.stdout
    assert "boot-chain-changed" in run(daemon, "trust", "history", "web").stdout


def test_show_tells_chain_policy_and_verdict(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    shown = run(daemon, "trust", "show", "web")
    assert "not enrolled yet" in shown.stdout and "PASS" in shown.stdout and "ab" * 32 in shown.stdout
    assert run(daemon, "trust", "show", "nobody").returncode == 3


def test_a_policy_goes_out_is_edited_and_comes_back(daemon: Any, tmp_path: Path) -> None:
    run(daemon, "vm", "create", "web")
    policy = json.loads(run(daemon, "trust", "policy", "show", "web").stdout)
    policy["minimum_sbat"] = {"shim": 4}
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(policy))
    tried = run(daemon, "trust", "policy", "set", "web", str(file), "--dry-run", "--format", "json")
    assert json.loads(tried.stdout)["stored"] is False and daemon.trust.kept_policy.minimum_sbat == {}
    assert run(daemon, "trust", "policy", "set", "web", str(file)).returncode == 0
    assert daemon.trust.kept_policy.minimum_sbat == {"shim": 4}
    assert "dry run" in run(daemon, "trust", "policy", "learn", "web", "--dry-run").stdout


@pytest.mark.parametrize("text", ["{", "\udcff", '{"compare": [99]}', '{"no_such_rule": 1}'])
def test_what_is_no_policy_is_refused(daemon: Any, tmp_path: Path, text: str) -> None:
    run(daemon, "vm", "create", "web")
    file = tmp_path / "policy.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert run(daemon, "trust", "policy", "set", "web", str(file)).returncode == 2


def test_a_schedule_is_an_interval_or_off(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    assert run(daemon, "trust", "schedule", "web", "--every", "900").returncode == 0
    assert run(daemon, "trust", "schedule", "web", "--off").returncode == 0
    assert daemon.trust.asked == [900, None]
    for wrong in ((), ("--off", "--every", "60"), ("--every", "1")):
        assert run(daemon, "trust", "schedule", "web", *wrong).returncode == 2
    assert run(daemon, "trust", "reset", "web").returncode == 0
    assert daemon.trust.asked[-1] == ("forget", "web")


def test_a_secret_goes_in_and_only_its_name_comes_out(daemon: Any, tmp_path: Path) -> None:
    run(daemon, "vm", "create", "web")
    file = tmp_path / "key"
    file.write_bytes(b"\x00\xffvery secret")
    added = run(daemon, "trust", "secret", "add", "web", "disk-key", "--from", str(file))
    assert added.returncode == 0 and daemon.secrets.kept == {"disk-key": b"\x00\xffvery secret"}, added.stderr
    listed = run(daemon, "trust", "secret", "list", "web")
    assert "disk-key" in listed.stdout and "very secret" not in listed.stdout + added.stderr
    assert run(daemon, "trust", "release", "web", "disk-key", "--to", "/run/key").returncode == 0
    assert daemon.secrets.released == [("disk-key", "/run/key")]
    assert run(daemon, "trust", "secret", "delete", "web", "disk-key").returncode == 0
    assert daemon.secrets.kept == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("secret", "add", "web", "../x", "--from", "/dev/null"),
        ("secret", "add", "web", "empty"),
        ("secret", "add", "web", "lost", "--from", "/nowhere"),
        ("release", "web", "key", "--to", "no/absolute/path"),
        ("release", "web", "key", "--to", "/run/new\nline"),
    ],
)
def test_bad_secrets_names_and_places_are_refused(daemon: Any, arguments: tuple[str, ...]) -> None:
    run(daemon, "vm", "create", "web")
    assert run(daemon, "trust", *arguments).returncode in (2, 3)
    assert daemon.secrets.kept == {} and daemon.secrets.released == []


def test_a_signer_is_told_by_its_common_name() -> None:
    from holdfast.cli.sheets.trust import _common_name

    assert _common_name("CN=Debian Secure Boot CA") == "Debian Secure Boot CA"
    assert _common_name(r"CN=A\, B,O=C") == r"A\, B"
    assert _common_name("O=Only,C=US") == "O=Only,C=US"
