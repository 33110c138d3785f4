"""`holdfast checkpoint` as a person runs it, against a daemon with fake checkpoints."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from holdfast.spec.checkpoint import CheckpointType, CheckpointView, CheckpointWish

TIME = datetime(2026, 3, 1, 14, 5, 9, tzinfo=UTC)


def view(name: str, parent: str | None, current: bool = False) -> CheckpointView:
    return CheckpointView(
        id=name,
        name=name,
        parent=parent,
        type=CheckpointType.STANDARD,
        created=TIME,
        current=current,
        notes="said \x1b[31m",
        has_memory=True,
        has_firmware_state=True,
        size=1 << 20,
        stall_seconds=0.0123,
    )


def test_create_sends_name_type_and_notes(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    arguments = ("--name", "first", "--type", "production-only", "--notes", "why")
    assert run(daemon, "checkpoint", "create", "web", *arguments).returncode == 0
    (asked,) = daemon.checkpoints.asked[0]
    assert (asked.name, asked.type, asked.notes) == ("first", CheckpointWish.PRODUCTION_ONLY, "why")
    assert run(daemon, "checkpoint", "create", "nobody").returncode == 3
    assert run(daemon, "checkpoint", "create", "web", "--name", "../x").returncode == 2


def test_list_is_a_tree_for_people_and_a_list_for_programs(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    daemon.checkpoints.made = [view("a", None), view("b", "a", current=True), view("c", None)]
    wire = json.loads(run(daemon, "checkpoint", "list", "web", "--format", "json").stdout)
    assert [(each["name"], each["parent"], each["current"]) for each in wire] == [
        ("a", None, False),
        ("b", "a", True),
        ("c", None, False),
    ]
    assert {each["created"] for each in wire} == {"2026-03-01T14:05:09Z"}
    lines = run(daemon, "checkpoint", "list", "web").stdout.splitlines()
    assert [line.split("  standard")[0].rstrip() for line in lines[1:]] == ["a", "  b *", "c"]
    shown = run(daemon, "checkpoint", "show", "web", "b").stdout
    assert "12 ms" in shown and "\x1b" not in shown


def test_apply_delete_and_rename_send_what_was_asked(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    daemon.checkpoints.made = [view("a b", None)]
    assert run(daemon, "checkpoint", "apply", "web", "a b", "--no-start").returncode == 0
    assert run(daemon, "checkpoint", "apply", "web", "a b", "--checkpoint-first").returncode == 0
    assert run(daemon, "checkpoint", "delete", "web", "a b", "--subtree").returncode == 0
    assert run(daemon, "checkpoint", "rename", "web", "a b", "c").returncode == 0
    (one, first), (_, second), deleted, (_, change) = daemon.checkpoints.asked
    assert one == "a b" and (first.checkpoint_first, first.start) == (False, False)
    assert (second.checkpoint_first, second.start) == (True, None)
    assert deleted == ("a b", True) and (change.name, change.notes) == ("c", None)


def test_a_schedule_keeps_what_is_not_named(daemon: Any) -> None:
    run(daemon, "vm", "create", "web")
    arguments = ("--every", "1h", "--keep", "5", "--max-age", "7d")
    assert run(daemon, "checkpoint", "schedule", "web", *arguments).returncode == 0
    shown = run(daemon, "checkpoint", "schedule", "web", "--type", "standard").stdout
    assert "1h" in shown and "1w" in shown and "standard" in shown
    planned = daemon.checkpoints.planned
    assert (planned.every_seconds, planned.keep, planned.max_age_seconds) == (3600, 5, 604800)
    assert run(daemon, "checkpoint", "schedule", "web", "--off").returncode == 0
    assert daemon.checkpoints.planned.every_seconds is None and daemon.checkpoints.planned.keep == 5


@pytest.mark.parametrize("text", ["1", "h", "-1h", "1x", "1.5h", "٣h"])
def test_what_is_no_duration_is_refused(daemon: Any, text: str) -> None:
    run(daemon, "vm", "create", "web")
    assert run(daemon, "checkpoint", "schedule", "web", f"--every={text}").returncode == 2


def test_a_checkpoint_is_exported_with_its_firmware_state(daemon: Any, tmp_path: Path) -> None:
    run(daemon, "vm", "create", "web")
    daemon.checkpoints.made = [view("a", None)]
    secret, folder = tmp_path / "secret", tmp_path / "out"
    secret.write_text("five plain words for this\n")
    arguments = ("checkpoint", "export", "web", "a", "--to", str(folder), "--passphrase-file", str(secret))
    done = run(daemon, *arguments, "--format", "qcow2")
    assert done.returncode == 0, done.stderr
    names = ["web-disk0.qcow2", "web.hfstate", "web.mf", "web.ovf"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "web.hfstate").read_bytes() == b"sealed"
    (asked,) = daemon.vm_exports.asked
    assert (asked.checkpoint, asked.format) == ("a", "qcow2")
    assert run(daemon, *arguments).returncode == 2
