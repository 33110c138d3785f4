"""Checkpoints of small guests that write: made, returned to, merged while they write, and refused."""

from invariants import check_invariants
from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import small_vm

from holdfast.spec.operation import Operation
from holdfast.spec.vm import VmState

NAME = "writer"
AT = f"/v1/vms/{NAME}/checkpoints"
DISKS = ("vda", "vdb")


def make(host: LiveHost, name: str, **more: object) -> Operation:
    return host.do("POST", AT, {"name": name, **more})


def listed(host: LiveHost) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in host.call("GET", AT)}


def layers_of(host: LiveHost) -> set[str]:
    return {path.name.removesuffix(".qcow2") for path in host.state.vm(NAME).glob("*.qcow2")}


def put(host: LiveHost, text: str, block: int = 0) -> None:
    """The same text on both disks, on the disk and not in the guest's memory."""
    writes = [
        f"printf %-512s '{text}' | dd of=/dev/{disk} bs=512 seek={block} conv=fsync,notrunc 2>/dev/null"
        for disk in DISKS
    ]
    host.run_in(NAME, " && ".join(writes))


def got(host: LiveHost, block: int = 0) -> list[str]:
    host.run_in(NAME, "echo 3 >/proc/sys/vm/drop_caches")
    return [
        host.run_in(NAME, f"dd if=/dev/{disk} bs=512 skip={block} count=1 2>/dev/null").strip()
        for disk in DISKS
    ]


def test_a_running_guest_returns_to_each_of_its_checkpoints(host: LiveHost, small: SmallGuest) -> None:
    disks = [{"size": "16MiB"}, {"size": "16MiB"}]
    host.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks, start=True))
    host.wait_agent(NAME)
    host.run_in(NAME, "echo first >/tmp/memory")
    put(host, "one")
    standard = make(host, "one")
    assert standard.result and standard.result["type"] == "standard"
    assert 0 < standard.result["stall_seconds"] < 5
    put(host, "two")
    host.run_in(NAME, "echo second >/tmp/memory")
    production = make(host, "two", type="production-only")
    assert production.result and production.result["type"] == "production"
    assert 0 < production.result["stall_seconds"] < 5
    put(host, "three")
    found = listed(host)
    assert [(each["name"], each["parent"], each["current"]) for each in found.values()] == [
        ("one", None, False),
        ("two", "one", True),
    ]
    assert layers_of(host) == {f"disk{d}{n}" for d in (0, 1) for n in ("", "-1", "-2")}

    host.do("POST", f"{AT}/one/apply", {})
    assert host.wait_agent(NAME).state is VmState.RUNNING
    assert got(host) == ["one", "one"]
    assert host.run_in(NAME, "cat /tmp/memory") == "first\n"
    assert listed(host)["one"]["current"] is True

    put(host, "other")
    host.do("POST", f"{AT}/two/apply", {"checkpoint_first": True})
    host.wait_agent(NAME)
    assert got(host) == ["two", "two"]
    assert len(listed(host)) == 3

    # A second time, from the same memory.
    host.do("POST", f"{AT}/one/apply", {})
    host.wait_agent(NAME)
    assert got(host) == ["one", "one"]
    for name in [*listed(host)]:
        host.do("DELETE", f"{AT}/{name}")
    assert got(host) == ["one", "one"]
    assert listed(host) == {} and len(layers_of(host)) == 2
    check_invariants(host)
