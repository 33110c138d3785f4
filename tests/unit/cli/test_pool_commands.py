"""`holdfast pool`: what it asks for and what it shows."""

import json
from typing import Any

from command_line import run


def test_the_life_of_a_pool(daemon: Any) -> None:
    made = run(daemon, "pool", "create", "fast", "--path", "/srv/fast", "--disk-format", "raw")
    assert made.returncode == 0, made.stderr
    for words in (("Name", "fast"), ("On", "/srv/fast"), ("Health", "available"), ("Free", "1 GiB")):
        assert any(line.split() == " ".join(words).split() for line in made.stdout.splitlines()), made.stdout
    listed = run(daemon, "pool", "list").stdout
    assert listed.splitlines()[1].split()[:3] == ["fast", "directory", "available"]
    shown = json.loads(run(daemon, "pool", "refresh", "fast", "--format", "json").stdout)
    assert shown["spec"] == {"kind": "directory", "path": "/srv/fast", "format": "raw"}
    assert (
        run(daemon, "vm", "create", "web", "--disk", "1GiB", "--disk", "2GiB", "--pool", "fast").returncode
        == 0
    )
    assert [disk.pool for disk in daemon.vms.created[0].disks] == ["fast", "fast"]
    deleted = run(daemon, "pool", "delete", "fast", "--format", "json")
    assert json.loads(deleted.stdout) == {"deleted": "fast"}
    refused = run(daemon, "pool", "create", "x", "--path", "relative/path")
    assert refused.returncode == 2 and "absolute" in refused.stderr


def test_each_kind_takes_its_own_options(daemon: Any) -> None:
    made = run(daemon, "pool", "create", "t", "--kind", "lvm-thin", "--group", "vg", "--thin-pool", "thin")
    assert made.returncode == 0 and "vg/thin" in made.stdout, made.stderr
    for arguments in (
        ("--kind", "nfs", "--path", "/x"),
        ("--kind", "tape", "--path", "/x"),
        ("--kind", "lvm-thin", "--group", "vg"),
    ):
        refused = run(daemon, "pool", "create", "x", *arguments)
        assert refused.returncode == 2 and "pool-options-do-not-fit" in refused.stderr
    hostile = run(daemon, "pool", "create", "x", "--kind", "lvm-thin", "--group", "-rf", "--thin-pool", "a/b")
    assert hostile.returncode == 2 and "bad-request" in hostile.stderr
