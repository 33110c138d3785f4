"""`holdfast disk` as a person runs it: what it asks for, what it says, and what it refuses."""

import json
from typing import Any

import pytest
from command_line import run

from holdfast.spec.units import GIB, MIB
from holdfast.spec.vm import DiskBus, IoLimits


@pytest.fixture
def web(daemon: Any) -> Any:
    run(daemon, "vm", "create", "web")
    return daemon


def as_json(daemon: Any, *arguments: str) -> Any:
    done = run(daemon, "disk", *arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_disk_is_added_and_told_of(web: Any) -> None:
    done = run(web, "disk", "add", "web", "--size", "10GiB", "--bus", "scsi", "--pool", "fast")
    assert done.returncode == 0, done.stderr
    assert "disk1 added; the guest sees it as /dev/vdb" in done.stderr
    asked = web.disks.asked[-1]
    assert (asked.size, asked.bus, asked.pool, asked.device) == (10 * GIB, DiskBus.SCSI, "fast", None)
    run(web, "disk", "add", "web", "--image", "debian-12", "--full-copy")
    assert (web.disks.asked[-1].image, web.disks.asked[-1].full_copy) == ("debian-12", True)
    wire = as_json(web, "add", "web", "--device", "/dev/disk/by-id/x", "--bus", "nvme")
    assert (wire["kind"], wire["state"], wire["result"]["guest_name"]) == (
        "disk.add",
        "succeeded",
        "/dev/vdb",
    )
    assert (web.disks.asked[-1].device, web.disks.asked[-1].bus) == ("/dev/disk/by-id/x", DiskBus.NVME)


def test_nobody_waits_who_does_not_want_to(web: Any) -> None:
    web.operations.hold.clear()
    done = run(web, "disk", "add", "web", "--size", "1GiB", "--no-wait")
    assert done.returncode == 0 and "disk.add of 'web' is under way" in done.stderr, done.stderr
    wire = as_json(web, "grow", "web", "disk1", "--size", "2GiB", "--no-wait")
    assert (wire["kind"], wire["ended"]) == ("disk.grow", None)


def test_disks_are_listed_and_shown(web: Any) -> None:
    run(web, "disk", "limit", "web", "disk1", "--iops", "500", "--burst-iops", "2000")
    assert [each["id"] for each in as_json(web, "list", "web")] == ["disk0", "disk1"]
    head, first, *_ = run(web, "disk", "list", "web").stdout.splitlines()
    assert head.split("  ")[0] == "ID" and "AFTER NEXT START" in head
    assert first.split()[:4] == ["disk0", "virtio", "1", "GiB"] and "500 requests a second" in first
    sheet = run(web, "disk", "show", "web", "disk1").stdout
    assert "the VM's own folder" in sheet and "for 1 s up to 2000 requests a second" in sheet
    assert "\x1b" not in sheet and "red" in sheet
    assert as_json(web, "show", "web", "disk1")["limits"]["burst_iops"] == 2000


def test_limits_are_set_left_and_lifted(web: Any) -> None:
    wire = as_json(
        web,
        *("limit", "web", "disk1", "--iops-read", "100", "--bandwidth", "1.5MiB"),
        *("--burst-iops", "300", "--burst-bandwidth", "4m", "--burst-seconds", "10"),
    )
    assert wire["limits"] == web.disks.limits.model_dump(mode="json")
    held = IoLimits(
        iops_read=100, bandwidth=3 * MIB // 2, burst_iops=300, burst_bandwidth=4 * MIB, burst_seconds=10
    )
    assert web.disks.limits == held
    as_json(web, "limit", "web", "disk1", "--iops-write", "50")
    assert (web.disks.limits.iops_read, web.disks.limits.iops_write) == (100, 50)
    as_json(web, "limit", "web", "disk1", "--bandwidth", "0", "--burst-bandwidth", "0")
    assert web.disks.limits.bandwidth is None and web.disks.limits.burst_iops == 300
    as_json(web, "limit", "web", "disk1", "--none", "--bandwidth-write", "1MiB")
    assert web.disks.limits == IoLimits(bandwidth_write=MIB)
    assert "Limits" in run(web, "disk", "limit", "web", "disk1", "--none").stdout
    assert web.disks.limits == IoLimits()


def test_growing_moving_and_removing_say_what_became_of_it(web: Any) -> None:
    grown = run(web, "disk", "grow", "web", "disk1", "--size", "20GiB")
    assert "disk1 has 20 GiB; the guest does not see the new size yet" in grown.stderr
    moved = run(web, "disk", "move", "web", "disk1", "--to", "fast")
    assert "disk1 lies in the pool fast" in moved.stderr and web.disks.asked[-1].to == "fast"
    assert as_json(web, "move", "web", "disk1", "--bus", "scsi")["bus"] == "scsi"
    assert run(web, "vm", "move-disk", "web", "disk1", "--bus", "nvme").returncode == 0
    assert web.disks.bus is DiskBus.NVME
    kept = run(web, "disk", "remove", "web", "disk1", "--keep")
    assert "kept in /x" in kept.stderr and web.disks.asked[-1] == ("disk1", True, False)
    forced = run(web, "disk", "remove", "web", "disk1", "--force")
    assert "gone from the next start on" in forced.stderr and web.disks.asked[-1] == ("disk1", False, True)


def test_a_name_is_no_path(web: Any) -> None:
    assert run(web, "disk", "remove", "web", "../disk0/grow").returncode != 0
    assert run(web, "disk", "show", "web", "a/b").returncode != 0
    assert web.disks.asked == []


@pytest.mark.parametrize(
    ("arguments", "code", "error_id"),
    [
        (("list", "nobody"), 3, "vm-not-found"),
        (("show", "nobody", "disk0"), 3, "vm-not-found"),
        (("add", "web"), 2, "bad-request"),
        (("add", "web", "--size", "10 apples"), 2, "bad-request"),
        (("add", "web", "--size", "-1GiB"), 2, "bad-request"),
        (("add", "web", "--size", "1KiB"), 2, "bad-request"),
        (("add", "web", "--size", "1GiB", "--bus", "ide"), 2, "bad-request"),
        (("add", "web", "--size", "1GiB", "--pool", "../x"), 2, "bad-request"),
        (("add", "web", "--size", "1GiB", "--device", "/dev/x"), 2, "bad-request"),
        (("grow", "web", "disk1", "--size", "much"), 2, "bad-request"),
        (("move", "web", "disk1"), 2, "one-destination"),
        (("move", "web", "disk1", "--to", "a", "--bus", "scsi"), 2, "one-destination"),
        (("move", "web", "disk1", "--bus", "ide"), 2, "bad-request"),
        (("limit", "web", "disk1"), 2, "no-limit-named"),
        (("limit", "web", "disk1", "--iops", "-5"), 2, "bad-request"),
        (("limit", "web", "disk1", "--bandwidth", "fast"), 2, "bad-request"),
        (("limit", "web", "disk1", "--burst-seconds", "9999"), 2, "bad-request"),
        (("limit", "web", "disk1", "--iops", "5", "--iops-read", "5"), 2, "bad-limits"),
        (("limit", "web", "disk1", "--burst-iops", "5"), 2, "bad-limits"),
    ],
)
def test_refusals(web: Any, arguments: tuple[str, ...], code: int, error_id: str) -> None:
    plain = run(web, "disk", *arguments)
    assert (plain.returncode, plain.stdout) == (code, ""), plain.stderr
    assert f"id: {error_id}" in plain.stderr
    told = json.loads(run(web, "disk", *arguments, "--format", "json").stderr)
    assert told["id"] == error_id and told["message"]
    assert web.disks.asked == []
    assert web.disks.limits == IoLimits()


def test_an_option_that_is_no_number_or_is_missing_is_told(web: Any) -> None:
    for arguments in (("limit", "web", "disk1", "--iops", "1.5"), ("grow", "web", "disk1")):
        assert run(web, "disk", *arguments).returncode == 2
