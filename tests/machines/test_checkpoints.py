"""Checkpoints of small guests that write: made, returned to, merged while they write, and refused."""

import pytest
from invariants import check_invariants
from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import small_vm

from holdfast.spec.errors import RemoteError
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

    _of_a_paused_guest(host)

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


def _of_a_paused_guest(host: LiveHost) -> None:
    """It cannot be frozen; what failed leaves nothing, and what falls back to memory leaves it paused."""
    before = layers_of(host)
    host.call("POST", f"/v1/vms/{NAME}/pause")
    begun = host.call("POST", AT, {"name": "none", "type": "production-only"})
    ended = host.end_of(Operation.model_validate(begun))
    assert ended.error is not None and ended.error["id"] == "guest-not-frozen"
    assert layers_of(host) == before and list(listed(host)) == ["one", "two"]
    fallen = make(host, "paused", type="production").result
    assert fallen is not None and fallen["type"] == "standard" and fallen["stall_seconds"] is None
    assert host.vm(NAME).state is VmState.PAUSED
    host.do("DELETE", f"{AT}/paused")
    assert layers_of(host) == before and host.vm(NAME).state is VmState.PAUSED
    host.call("POST", f"/v1/vms/{NAME}/resume")
    assert got(host) == ["three", "three"]


def test_vms_at_rest_firmware_state_export_and_what_is_refused(host: LiveHost, small: SmallGuest) -> None:
    host.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=[{"size": "16MiB"}], start=True))
    host.wait_agent(NAME)
    host.run_in(NAME, "echo kept >/tmp/memory")
    host.do("POST", f"/v1/vms/{NAME}/save")
    made = make(host, "saved").result
    assert made and made["type"] == "standard" and made["stall_seconds"] is None
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    host.call("POST", f"/v1/vms/{NAME}/kill")
    assert make(host, "Off", type="production").result
    _refusals(host)
    _undone(host)
    host.do("POST", f"{AT}/saved/apply", {"start": False})
    assert host.vm(NAME).state is VmState.SAVED and len(layers_of(host)) == 3
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    assert host.run_in(NAME, "cat /tmp/memory") == "kept\n"
    host.do("DELETE", f"{AT}/saved", subtree="true")
    assert listed(host) == {}
    host.call("POST", f"/v1/vms/{NAME}/kill")
    host.call("POST", f"/v1/vms/{NAME}/rename", {"name": f"{NAME} 2"})
    host.do("DELETE", f"/v1/vms/{NAME} 2")
    _firmware_state(host)
    check_invariants(host)


def refused(host: LiveHost, method: str, path: str, body: object = None) -> str:
    with pytest.raises(RemoteError) as caught:
        host.call(method, path, body)
    return caught.value.wire_id


def _refusals(host: LiveHost) -> None:
    assert refused(host, "POST", AT, {"name": "off"}) == "checkpoint-name-taken"
    assert refused(host, "POST", AT, {"name": "../off"}) == "bad-request"
    assert refused(host, "POST", f"{AT}/none/apply", {}) == "checkpoint-not-found"
    assert refused(host, "DELETE", f"{AT}/none") == "checkpoint-not-found"
    assert refused(host, "PATCH", f"{AT}/Off", {"name": "SAVED"}) == "checkpoint-name-taken"
    assert host.call("PATCH", f"{AT}/Off", {"name": "off", "notes": "said"})["notes"] == "said"
    folder = host.state.vm(NAME)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"saved", "off"}
    lowest = folder / "disk0.qcow2"
    lowest.rename(folder / "away")
    assert refused(host, "POST", AT, {}) == "volume-missing"
    assert refused(host, "POST", f"{AT}/saved/apply", {}) == "volume-missing"
    (folder / "away").rename(lowest)
    memory = folder / "checkpoints" / "saved" / "memory"
    memory.rename(folder / "away")
    assert refused(host, "POST", f"{AT}/saved/apply", {}) == "checkpoint-damaged"
    (folder / "away").rename(memory)


def _undone(host: LiveHost) -> None:
    """A return that fails at its last step leaves all as it was."""
    memory = host.state.vm(NAME) / "checkpoints" / "saved" / "memory"
    before, whole = (listed(host), layers_of(host), host.vm(NAME).spec), memory.read_bytes()
    memory.write_bytes(b"no memory of any machine" * 1000)
    begun = host.call("POST", f"{AT}/saved/apply", {})
    ended = host.end_of(Operation.model_validate(begun))
    assert ended.error is not None and ended.error["id"] == "memory-not-restored", ended
    assert (listed(host), layers_of(host), host.vm(NAME).spec) == before
    assert host.vm(NAME).state is VmState.OFF
    memory.write_bytes(whole)


def _firmware_state(host: LiveHost) -> None:
    """Of a VM with UEFI and a vTPM, which need not start for it."""
    name = "uefi"
    path = f"/v1/vms/{name}/checkpoints"
    body = {"name": name, "memory": "128MiB", "disks": [{"size": "16MiB"}], "nics": []}
    host.do("POST", "/v1/vms", body)
    firmware = host.state.vm(name) / "firmware"
    before = {each: (firmware / each).read_bytes() for each in ("variables.fd", "tpm/tpm2-00.permall")}
    host.do("POST", path, {"name": "one"})
    for each, content in before.items():
        (firmware / each).write_bytes(content[:64])
    host.do("POST", f"{path}/one/apply", {})
    assert {each: (firmware / each).read_bytes() for each in before} == before
    assert host.vm(name).state is VmState.OFF
    host.do("POST", f"{path}/one/apply", {})  # now from a state that is whole
    assert [each.name for each in (host.state.vm(name) / "checkpoints").iterdir()] == ["one"]
    with host.client() as client:
        body = {"passphrase": "five plain words for this"}
        assert client.content("POST", f"{path}/one/firmware-state", body).startswith(b"\x89HFS")
    host.do("DELETE", f"/v1/vms/{name}")
