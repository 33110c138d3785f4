"""What `show` prints for people: grouped, in human units, with nothing of a guest's that moves the cursor."""

from typing import Any

from holdfast.cli.sheets.check import check_sheet
from holdfast.cli.sheets.host import host_sheet
from holdfast.cli.sheets.operation import operation_sheet
from holdfast.cli.sheets.vm import image_digests, vm_sheet
from holdfast.cli.sheets.words import duration, pairs, ranges

DIGEST = "sha256:" + "ab" * 32
VM: dict[str, Any] = {
    "name": "web",
    "state": "running",
    "cpus": 2,
    "memory": 2**30,
    "acceleration": "kvm",
    "addresses": ["10.0.2.15", "fe80::1"],
    "created": "2026-01-02T03:04:05Z",
    "operation": None,
    "spec": {
        "boot": {"kind": "uefi", "secure_boot": True, "tpm": True},
        "disks": [
            {"id": "disk0", "size": 8 * 2**30, "bus": "virtio", "image": DIGEST},
            {"id": "disk1", "size": 512 * 2**20, "bus": "scsi", "image": None},
        ],
        "cd_drives": [{"id": "cd0", "image": None}],
        "nics": [{"id": "nic0", "mac": "52:54:00:00:00:01", "switch": "lan", "vlan": 12}],
    },
    "guest": {
        "agent": "connected",
        "secure_boot": True,
        "tpm_version": "2.0",
        "os_name": "Debian\x1b[2J",
        "kernel": "6.1",
        "host_name": None,
    },
    "boot_seconds": 12.34,
    "uptime_seconds": 3700.0,
    "folder": "/var/lib/holdfast/vms/web",
    "failure": None,
    "notices": ["Secure Boot is off"],
    "pending": {"memory": 2 * 2**30, "cpus": 4},
}


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_vm() -> None:
    text = vm_sheet(VM, {DIGEST: "debian-12"})
    lines = lines_of(text)
    assert ["Memory", "1", "GiB"] in lines
    assert ["Uptime", "1", "h", "01", "min"] in lines
    assert ["disk0", "8", "GiB", "virtio", "debian-12"] in lines
    assert ["disk1", "512", "MiB", "scsi", "-"] in lines
    assert ["cd0", "empty"] in lines
    assert ["nic0", "lan", "12", "52:54:00:00:00:01"] in lines
    assert ["memory:", "2", "GiB"] in lines
    assert ["Host", "name", "-"] in lines
    assert "\x1b" not in text
    assert "{" not in text


def test_a_vm_that_failed_says_why_with_the_end_of_its_log() -> None:
    failure = {"text": "QEMU ended", "time": "2026-01-02T03:04:05Z", "log_tail": ["first", "last"]}
    off = {**VM, "state": "failed", "failure": failure, "guest": {"agent": "off"}}
    text = vm_sheet(off)
    assert "QEMU ended (2026-01-0" in text
    assert text.endswith("Last lines of its log\n  first\n  last\n")
    assert "TPM  " not in text, "nothing of the guest is known"
    assert "sha256:abababababab" in text, "an image without a known name"


def test_a_vm_with_work_under_way() -> None:
    text = vm_sheet(VM, operation={"kind": "vm.stop", "progress": 0.5, "phase": "ask the guest"})
    assert ["Operation", "vm.stop", "50%", "ask", "the", "guest"] in lines_of(text)


def test_every_image_of_a_vm_is_looked_up() -> None:
    boot = {"kind": "kernel", "kernel": "sha256:k", "initrd": None}
    assert image_digests({"spec": {**VM["spec"], "boot": boot}}) == {DIGEST, "sha256:k"}


def test_a_host() -> None:
    cpu = {"node": 0, "socket": 0, "kind": "uniform", "online": True}
    host = {
        "name": "h",
        "kernel": "6.1",
        "cpu_model": "Some CPU",
        "cpus": [{**cpu, "id": each, "core": each // 2, "online": each < 4} for each in range(5)],
        "nodes": [{"id": 0, "cpus": [0, 1, 2, 3], "memory": 2**34, "free": 2**33}],
        "memory": 2**34,
        "memory_available": 2**33,
        "devices": [],
    }
    lines = lines_of(host_sheet(host))
    assert ["CPUs", "4", "(1", "socket,", "2", "cores),", "1", "offline"] in lines
    assert ["0", "0-3", "16", "GiB", "8", "GiB"] in lines
    assert ["Devices"] not in lines, "an empty table has no heading"


def test_an_operation_that_failed_tells_the_cure() -> None:
    operation = {
        "id": "1",
        "kind": "vm.create",
        "subject": "web",
        "state": "failed",
        "phase": "x",
        "progress": 0.3,
        "text": "",
        "actor": "root",
        "created": "2026-01-02T03:04:05Z",
        "ended": "2026-01-02T03:04:06Z",
        "error": {"id": "no-space", "message": "full", "cure": "Make room."},
        "result": None,
    }
    text = operation_sheet(operation)
    assert "Make room." in text
    assert "no-space" in text
    assert "Progress" not in text


def test_a_check_is_folded_under_its_text() -> None:
    line = {"id": "x", "title": "Clock", "status": "limited", "text": "word " * 20, "cure": "Install it."}
    lines = check_sheet([line, {**line, "status": "ok", "text": "fine", "cure": ""}], 60).splitlines()
    assert all(len(each) <= 60 for each in lines)
    assert lines[0].startswith("limited  Clock  word word")
    assert lines[-2].strip() == "-> Install it."
    assert lines[-1] == "ok       Clock  fine"
    assert all(each.startswith(" " * 16) for each in lines[1:-1])


def test_words() -> None:
    assert [duration(each) for each in (None, 1.26, 75, 7260, 90000)] == [
        None,
        "1.3 s",
        "1 min 15 s",
        "2 h 01 min",
        "1 d 1 h",
    ]
    assert ranges([8, 0, 1, 2]) == "0-2,8"
    assert pairs({"a": 1, "b": None, "c": ["x", "y"], "d": []}) == "a=1 c=x,y"
