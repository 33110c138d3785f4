"""Firmware state and its keys by a real daemon, with real TPMs in VMs that need no boot."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_tpm import EmulatedTpm, manufacture
from invariants import check_invariants
from live_host import LiveHost, OperationEndedBadly, live_host

from holdfast.spec.errors import RemoteError
from holdfast.spec.vm import UefiBoot, VmState
from holdfast.trust import state_key
from holdfast.trust.host_key import HostKeys

PASSPHRASE = "five plain words for this"
STATE = Path("firmware/tpm/tpm2-00.permall")
KEY = Path("firmware/tpm.key.json")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[LiveHost]:
    """A daemon with one VM that has firmware state and an empty disk."""
    with live_host(tmp_path) as running:
        make(running, "web")
        yield running


def make(host: LiveHost, name: str, **more: Any) -> None:
    disks = [{"size": "1MiB"}]
    host.do("POST", "/v1/vms", {"name": name, "memory": "256MiB", "disks": disks, "nics": [], **more})


def post(host: LiveHost, path: str, body: Any = None) -> Any:
    return host.call("POST", f"/v1/vms/{path}", body if body is not None else {})


def refused(host: LiveHost, path: str, body: Any = None) -> str:
    with pytest.raises((RemoteError, OperationEndedBadly)) as caught:
        post(host, path, body)
    assert isinstance(caught.value, RemoteError)
    return caught.value.wire_id


def exported(host: LiveHost, name: str, tmp_path: Path) -> Path:
    target = tmp_path / f"{name}.hfstate"
    with host.client() as client:
        data = client.content("POST", f"/v1/vms/{name}/firmware-state/export", {"passphrase": PASSPHRASE})
    target.write_bytes(data)
    return target


def imported(host: LiveHost, name: str, file: Path, **more: Any) -> Any:
    with host.client() as client:
        upload = client.upload(file).id
    body = {"upload": upload, "passphrase": PASSPHRASE, **more}
    return host.call("POST", f"/v1/vms/{name}/firmware-state/import", body)


def state(host: LiveHost, name: str) -> bytes:
    return (host.state.vm(name) / STATE).read_bytes()


def started(host: LiveHost, name: str) -> None:
    host.do("POST", f"/v1/vms/{name}/start")
    host.call("POST", f"/v1/vms/{name}/kill")


def test_a_clone_is_a_copy_or_a_move_and_never_both(bare: LiveHost) -> None:
    bare.do("POST", "/v1/vms/web/clone", {"name": "copy"})
    bare.do("POST", "/v1/vms/web/clone", {"name": "moved", "same_tpm": True})
    web, copy, moved = bare.vm("web"), bare.vm("copy"), bare.vm("moved")
    assert state(bare, "moved") == state(bare, "web") != state(bare, "copy")
    variables = Path("firmware/variables.fd")
    assert len({(bare.state.vm(name) / variables).read_bytes() for name in ("web", "copy", "moved")}) == 1
    assert isinstance(moved.spec.boot, UefiBoot) and moved.spec.boot.tpm_identity == web.id
    assert isinstance(copy.spec.boot, UefiBoot) and copy.spec.boot.tpm_identity is None
    assert any(web.id in notice for notice in moved.notices)
    started(bare, "copy")
    bare.do("POST", "/v1/vms/web/start")
    for _ in range(2):
        assert refused(bare, "moved/start") == "tpm-identity-in-use"
        bare.kill()
        bare.start()
    bare.do("POST", "/v1/vms/copy/start")
    bare.call("POST", "/v1/vms/web/kill")
    bare.do("POST", "/v1/vms/moved/start")
    assert refused(bare, "web/start") == "tpm-identity-in-use"
    make(bare, "plain", tpm=False)
    assert refused(bare, "plain/clone", {"name": "x", "same_tpm": True}) == "no-tpm-to-keep"
    for name in ("web", "copy", "moved", "plain"):
        bare.do("DELETE", f"/v1/vms/{name}", force="true")
    assert check_invariants(bare) == []


def test_an_export_comes_back_into_its_vm_and_into_no_other_by_accident(
    bare: LiveHost, tmp_path: Path
) -> None:
    before, file = state(bare, "web"), exported(bare, "web", tmp_path)
    make(bare, "other")
    own = state(bare, "other")
    imported(bare, "web", exported(bare, "other", tmp_path), same_tpm=True)
    assert state(bare, "web") == own
    imported(bare, "web", file)
    boot = bare.vm("web").spec.boot
    assert state(bare, "web") == before and isinstance(boot, UefiBoot) and boot.tpm_identity is None
    started(bare, "web")
    with pytest.raises(RemoteError) as caught:
        imported(bare, "other", file)
    assert caught.value.wire_id == "firmware-state-of-another-vm" and state(bare, "other") == own
    view = imported(bare, "other", file, same_tpm=True)
    assert view["spec"]["boot"]["tpm_identity"] == bare.vm("web").id and state(bare, "other") == before
    bare.do("POST", "/v1/vms/other/start")
    assert refused(bare, "web/start") == "tpm-identity-in-use"
    with pytest.raises(RemoteError) as caught:
        imported(bare, "other", file)
    assert caught.value.wire_id == "vm-in-wrong-state"
    assert refused(bare, "other/firmware-state/export", {"passphrase": PASSPHRASE}) == "vm-in-wrong-state"
    bare.call("POST", "/v1/vms/other/kill")
    check_invariants(bare)


def test_what_cannot_be_imported_changes_nothing(bare: LiveHost, tmp_path: Path) -> None:
    file = exported(bare, "web", tmp_path)
    make(bare, "plain", tpm=False)
    before, whole = state(bare, "web"), file.read_bytes()
    cases: list[tuple[str, str, bytes, dict[str, Any]]] = [
        ("web", "wrong-passphrase", whole, {"passphrase": "another passphrase"}),
        ("web", "one-protection", whole, {"content_key": "0" * 64}),
        ("web", "firmware-state-damaged", whole, {"passphrase": None, "content_key": "0" * 64}),
        ("web", "bad-content-key", whole, {"passphrase": None, "content_key": "no key"}),
        ("web", "firmware-state-damaged", whole[:-1], {}),
        ("web", "firmware-state-damaged", whole[:100], {}),
        ("web", "firmware-state-damaged", b"no state at all", {}),
        ("web", "firmware-state-newer", whole.replace(b'"version": 1, "vm"', b'"version": 2, "vm"'), {}),
        ("web", "vtpm-state-newer", whole.replace(b'"least": 3', b'"least": 9'), {}),
        ("plain", "firmware-state-unlike", whole, {"same_tpm": True}),
    ]
    for name, error_id, content, more in cases:
        file.write_bytes(content)
        with pytest.raises(RemoteError) as caught:
            imported(bare, name, file, **more)
        assert caught.value.wire_id == error_id, caught.value
        assert state(bare, "web") == before
    assert refused(bare, "web/firmware-state/export") == "one-protection"
    assert refused(bare, "web/firmware-state/export", {"passphrase": "short"}) == "passphrase-too-short"
    assert refused(bare, "web/firmware-state/export", {"recipient": "no key"}) == "bad-recipient"
    assert list((bare.state.scratch / "uploads").iterdir()) == []
    # What is damaged is healed by an import of what was exported before.
    file.write_bytes(whole)
    for path in (KEY, STATE):
        (bare.state.vm("web") / path).write_bytes(b"damaged")
    imported(bare, "web", file)
    assert state(bare, "web") == before
    started(bare, "web")


def test_a_recovery_key_outlives_the_host_key(bare: LiveHost) -> None:
    shown = post(bare, "web/recovery-key")["recovery_key"]
    assert refused(bare, "web/recovery-key") == "recovery-key-exists"
    bare.stop()
    for path in bare.state.keys.glob("host*"):
        path.unlink()
    bare.start()
    assert refused_start(bare) == "wrapped-by-another-host"
    assert refused(bare, "web/recover", {"recovery_key": shown[:-1] + "?"}) == "recovery-key-mistyped"
    post(bare, "web/recover", {"recovery_key": shown})
    started(bare, "web")
    renewed = post(bare, "web/recovery-key", {"new": True})["recovery_key"]
    assert refused(bare, "web/recover", {"recovery_key": shown}) == "recovery-key-wrong"
    post(bare, "web/recover", {"recovery_key": renewed})
    # A damaged host key: recovery begins a new one by itself.
    bare.stop()
    (bare.state.keys / "host.key").write_text("damaged")
    bare.start()
    assert refused_start(bare) == "host-key-damaged"
    post(bare, "web/recover", {"recovery_key": renewed})
    started(bare, "web")
    text = bare.log.read_text() + (bare.state.root / "catalog.sqlite").read_bytes().decode(errors="replace")
    text += (bare.state.root / "operations.sqlite").read_bytes().decode(errors="replace")
    for secret in (shown, renewed, *shown.split("-"), *renewed.split("-")):
        assert secret not in text


def refused_start(host: LiveHost, name: str = "web") -> str:
    with pytest.raises(OperationEndedBadly) as caught:
        host.do("POST", f"/v1/vms/{name}/start")
    (operation,) = caught.value.args
    assert operation.error
    return str(operation.error["id"])


def test_a_rotation_leaves_running_vms_alone_and_goes_on_after_a_kill(bare: LiveHost) -> None:
    make(bare, "db")
    bare.do("POST", "/v1/vms/web/start")
    running = [marked.ref for marked in bare.processes.find()]
    old = json.loads((bare.state.keys / "host.key").read_text())["id"]
    done = bare.call("POST", "/v1/host/key/rotate", {})
    assert done["rewrapped"] == 2 and done["unreadable"] == [] and done["earlier"] == []
    assert done["id"] != old and done["kind"] == "file" and done["words"]
    for name in ("web", "db"):
        assert json.loads((bare.state.vm(name) / KEY).read_text())["host"]["key"] == done["id"]
    assert [marked.ref for marked in bare.processes.find()] == running
    with pytest.raises(RemoteError) as caught:
        bare.call("POST", "/v1/host/key/rotate", {"to": "tpm"})
    assert caught.value.wire_id == "no-host-tpm"
    # As a kill between the new key and the wrapping leaves it: both keys there, the VMs under the old one.
    kept = {name: (bare.state.vm(name) / KEY).read_text() for name in ("web", "db")}
    current = (bare.state.keys / "host.key").read_text()
    bare.call("POST", "/v1/host/key/rotate", {})
    bare.kill()
    (bare.state.keys / f"host-{done['id']}.key").write_text(current)
    for name, text in kept.items():
        (bare.state.vm(name) / KEY).write_text(text)
    bare.start()
    assert [path.name for path in bare.state.keys.glob("host*")] == ["host.key"]
    new = json.loads((bare.state.keys / "host.key").read_text())["id"]
    for name in ("web", "db"):
        assert json.loads((bare.state.vm(name) / KEY).read_text())["host"]["key"] == new != done["id"]
    bare.call("POST", "/v1/vms/web/kill")
    started(bare, "web")
    started(bare, "db")


def test_a_key_sealed_in_the_hosts_tpm_needs_the_same_boot(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hft-", dir="/tmp") as folder:
        manufacture(Path(folder))
        tpm = EmulatedTpm(Path(folder)).start()
        try:
            with live_host(tmp_path, "--host-tpm", tpm.address) as host:
                live_through_a_changed_boot(host, tpm, tmp_path)
        finally:
            tpm.stop()


def live_through_a_changed_boot(host: LiveHost, tpm: EmulatedTpm, tmp_path: Path) -> None:
    def key_line() -> dict[str, str]:
        (line,) = (each for each in host.call("GET", "/v1/host/check") if each["id"] == "host-key")
        return dict(line)

    make(host, "web")
    shown = post(host, "web/recovery-key")["recovery_key"]
    assert json.loads((host.state.keys / "host.key").read_text())["kind"] == "tpm"
    assert key_line()["status"] == "ok" and "TPM" in key_line()["text"]
    host.stop()
    tpm.reboot()
    host.start()
    started(host, "web")
    host.stop()
    tpm.reboot()
    tpm.tool("tpm2_pcrextend", f"7:sha256={'ab' * 32}", folder=tmp_path)
    host.start()
    assert refused_start(host) == "host-key-sealed"
    assert key_line()["status"] == "missing" and "recover" in key_line()["cure"]
    post(host, "web/recover", {"recovery_key": shown})
    started(host, "web")
    assert key_line()["status"] == "ok"
    assert host.call("POST", "/v1/host/key/rotate", {"to": "file"})["kind"] == "file"
    assert key_line()["status"] == "limited" and "--to tpm" in key_line()["cure"]
    started(host, "web")


def test_a_plain_key_of_an_older_version_is_taken_over(bare: LiveHost) -> None:
    firmware, vm_id = bare.state.vm("web") / "firmware", bare.vm("web").id
    bare.stop()
    ring = asyncio.run(HostKeys(bare.state.keys).ring())
    key = state_key.load(firmware, vm_id, ring)
    state_key.forget(firmware)
    (firmware / "tpm.key").write_text(key.hex())
    bare.start()
    started(bare, "web")
    assert not (firmware / "tpm.key").exists()
    assert state_key.load(firmware, vm_id, ring) == key


def test_keys_and_states_of_other_vms_are_told_before_the_start(bare: LiveHost) -> None:
    make(bare, "other")
    web, other = bare.state.vm("web"), bare.state.vm("other")
    for path, error_id in ((KEY, "vtpm-key-of-another-vm"), (STATE, "vtpm-state-other-key")):
        own = (web / path).read_bytes()
        (web / path).write_bytes((other / path).read_bytes())
        assert refused_start(bare) == error_id
        (web / path).write_bytes(own[:-1])
        assert refused_start(bare) in ("vtpm-damaged", "vtpm-state-damaged")
        (web / path).write_bytes(own)
    started(bare, "web")
    assert bare.vm("web").state is VmState.OFF


def test_a_template_is_cloned_and_never_started(bare: LiveHost) -> None:
    bare.do("POST", "/v1/vms/web/start")
    with pytest.raises(RemoteError) as caught:
        bare.call("PATCH", "/v1/vms/web", {"template": True})
    assert caught.value.wire_id == "template-not-off"
    bare.call("POST", "/v1/vms/web/kill")
    bare.call("PATCH", "/v1/vms/web", {"template": True})
    assert refused(bare, "web/start") == "vm-is-template"
    assert any("template" in notice for notice in bare.vm("web").notices)
    bare.do("POST", "/v1/vms/web/clone", {"name": "copy"})
    assert not bare.vm("copy").spec.template
    started(bare, "copy")
    bare.call("PATCH", "/v1/vms/web", {"template": False})
    started(bare, "web")


def test_an_import_killed_in_the_middle_leaves_one_state_or_the_other(bare: LiveHost, tmp_path: Path) -> None:
    file = exported(bare, "web", tmp_path)
    make(bare, "other")
    own, web = state(bare, "other"), state(bare, "web")
    # As a kill leaves it between the two renames, and right before them.
    for halfway in (False, True):
        bare.stop()
        folder = bare.state.vm("other")
        shutil.copytree(bare.state.vm("web") / "firmware", folder / "firmware.new")
        if halfway:
            (folder / "firmware").rename(folder / "firmware.before")
        bare.start()
        assert state(bare, "other") == (web if halfway else own)
        assert sorted(path.name for path in folder.glob("firmware*")) == ["firmware"]
    imported(bare, "other", file, same_tpm=True)
    started(bare, "other")
