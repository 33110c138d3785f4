"""The life of a VM as its user sees it, with real small guests: states, events, and what stays.

Every test gets a VM of its own where it changes one; after each, records and reality must agree.
"""

import itertools
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invariants import check_invariants, wait_quiet
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.vm import VmState
from holdfast.spec.vm_view import VmView

_NUMBERS = itertools.count(1)
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small: SmallGuest) -> Iterator[LiveHost]:
    """One daemon for all tests of this file; several of them kill and start it."""
    with live_host(tmp_path_factory.mktemp("lifecycle")) as running:
        yield with_small_images(running, small)


@pytest.fixture(scope="module")
def steady(shared: LiveHost, small: SmallGuest) -> str:
    """A running VM for tests that only look."""
    shared.do("POST", "/v1/vms", small_vm("steady", small.append, start=True))
    shared.wait_agent("steady")
    return "steady"


@pytest.fixture
def vm(shared: LiveHost, small: SmallGuest) -> Iterator[str]:
    """A VM whose guest's agent answers; deleted afterwards, and then nothing of it may be left."""
    name = f"vm {next(_NUMBERS)}"
    shared.do("POST", "/v1/vms", small_vm(name, small.append, start=True))
    shared.wait_agent(name)
    yield name
    wait_quiet(shared)
    names = {each["name"] for each in check_invariants(shared, failed=frozenset({name}))}
    if name in names:
        shared.do("DELETE", f"/v1/vms/{name}", force="true")
    check_invariants(shared)


def kinds(host: LiveHost, name: str, after: int = 0) -> list[str]:
    """The kinds of all events of a VM itself, in order."""
    return [each["kind"] for each in recent(host, name) if each["id"] > after]


def recent(host: LiveHost, name: str) -> list[dict[str, Any]]:
    events = host.call("GET", "/v1/events/recent", limit=1000, subject=name)
    return [each for each in events if each["kind"].startswith("vm.")]


def changes(host: LiveHost, name: str, after: int = 0) -> list[str]:
    """As `kinds`, without what the guest said of itself, whose number depends on its speed."""
    return [kind for kind in kinds(host, name, after) if kind != "vm.guest"]


def newest(host: LiveHost) -> int:
    found = host.call("GET", "/v1/events/recent", limit=1)
    return int(found[-1]["id"]) if found else 0


def begin(host: LiveHost, name: str, verb: str, **query: object) -> Operation:
    return Operation.model_validate(host.call("POST", f"/v1/vms/{name}/{verb}", **query))


def qemu_pid(host: LiveHost, name: str) -> int:
    owner = f"vm:{host.vm(name).id}"
    return next(marked.ref.pid for marked in host.qemus() if marked.owner == owner)


def fire(host: LiveHost, name: str, script: str) -> None:
    """Begin a script in the guest that ends the guest; its answer never comes."""
    host.run_in(name, f"(sleep 0.3; {script}) >/dev/null 2>&1 </dev/null &")


def refusal(host: LiveHost, method: str, path: str, body: object = None, **query: object) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        host.call(method, path, body, **query)
    return caught.value


def test_the_whole_life_is_told_as_it_happens(shared: LiveHost, small: SmallGuest) -> None:
    name, path = "whole life", "/v1/vms/whole life"
    after = newest(shared)
    shared.do("POST", "/v1/vms", small_vm(name, small.append))
    assert shared.vm(name).state is VmState.OFF
    shared.do("POST", f"{path}/start")
    first = shared.wait_agent(name)
    assert first.state is VmState.RUNNING and first.boot_seconds
    assert VmView.model_validate(shared.call("POST", f"{path}/pause")).state is VmState.PAUSED
    assert VmView.model_validate(shared.call("POST", f"{path}/resume")).state is VmState.RUNNING
    shared.do("POST", f"{path}/stop")
    assert shared.vm(name).state is VmState.OFF
    check_invariants(shared)
    shared.do("POST", f"{path}/start")
    shared.wait_agent(name)
    shared.do("POST", f"{path}/restart")
    shared.wait_agent(name)
    assert VmView.model_validate(shared.call("POST", f"{path}/kill")).state is VmState.OFF
    check_invariants(shared)
    assert changes(shared, name, after) == [
        *("vm.starting", "vm.started", "vm.paused", "vm.resumed", "vm.stopping", "vm.stopped"),
        *("vm.starting", "vm.started", "vm.stopping", "vm.stopped"),
        *("vm.starting", "vm.started", "vm.stopped"),
    ]
    after = newest(shared)
    shared.call("POST", f"{path}/rename", {"name": "new life"})
    assert shared.vm("new life").id == first.id
    assert refusal(shared, "GET", path).wire_id == "vm-not-found"
    shared.do("POST", "/v1/vms/new life/clone", {"name": "second life"})
    copy = shared.vm("second life")
    assert copy.id != first.id and copy.state is VmState.OFF
    check_invariants(shared)
    shared.do("DELETE", "/v1/vms/new life")
    assert changes(shared, "new life", after) == ["vm.renamed", "vm.deleted"]
    shared.do("POST", "/v1/vms/second life/start")
    assert shared.wait_agent("second life").state is VmState.RUNNING
    assert refusal(shared, "DELETE", "/v1/vms/second life").wire_id == "vm-in-wrong-state"
    shared.do("DELETE", "/v1/vms/second life", force="true")
    assert {each["name"] for each in check_invariants(shared)} <= {"steady"}


def test_memory_survives_save_and_start(shared: LiveHost, vm: str) -> None:
    shared.run_in(vm, "head -c 3000000 /dev/urandom >/tmp/kept; echo disk >/dev/vda")
    digest = shared.run_in(vm, "md5sum </tmp/kept")
    boot_id = shared.run_in(vm, _BOOT_ID)
    after = newest(shared)
    shared.do("POST", f"/v1/vms/{vm}/save")
    assert shared.vm(vm).state is VmState.SAVED
    check_invariants(shared)
    shared.kill()
    shared.start()
    assert shared.vm(vm).state is VmState.SAVED
    shared.do("POST", f"/v1/vms/{vm}/start")
    shared.wait_agent(vm)
    assert shared.run_in(vm, "md5sum </tmp/kept") == digest
    assert shared.run_in(vm, _BOOT_ID) == boot_id
    assert shared.run_in(vm, "head -n 1 /dev/vda") == "disk\n"
    expected = ["vm.saving", "vm.saved", "vm.starting", "vm.resumed-from-save"]
    assert changes(shared, vm, after) == expected
    assert "vm.guest-restarted" not in kinds(shared, vm)


def test_saved_memory_can_be_dropped(shared: LiveHost, vm: str) -> None:
    shared.do("POST", f"/v1/vms/{vm}/save")
    assert refusal(shared, "POST", f"/v1/vms/{vm}/clone", {"name": "x"}).wire_id == "vm-in-wrong-state"
    assert VmView.model_validate(shared.call("POST", f"/v1/vms/{vm}/kill")).state is VmState.OFF
    check_invariants(shared)


def test_pause_stops_the_guests_time(shared: LiveHost, vm: str) -> None:
    before = float(shared.run_in(vm, "cut -d' ' -f1 /proc/uptime"))
    shared.call("POST", f"/v1/vms/{vm}/pause")
    error = refusal(shared, "POST", f"/v1/vms/{vm}/exec", {"argv": ["true"]})
    assert error.wire_id == "vm-in-wrong-state" and error.cure
    shared.kill()
    shared.start()
    assert shared.vm(vm).state is VmState.PAUSED
    time.sleep(3)
    shared.call("POST", f"/v1/vms/{vm}/resume")
    assert float(shared.run_in(vm, "cut -d' ' -f1 /proc/uptime")) - before < 3
    # A paused VM can be saved, and comes back running.
    shared.call("POST", f"/v1/vms/{vm}/pause")
    shared.do("POST", f"/v1/vms/{vm}/save")
    shared.do("POST", f"/v1/vms/{vm}/start")
    shared.wait_agent(vm)
    shared.run_in(vm, "true")


def test_a_guest_that_powers_off_by_itself_is_off(shared: LiveHost, vm: str) -> None:
    fire(shared, vm, "poweroff -f")
    assert shared.wait_state(vm, VmState.OFF).failure is None
    check_invariants(shared)
    assert changes(shared, vm)[-1] == "vm.stopped"


def test_a_guest_that_powers_off_without_a_daemon_is_off_at_its_return(shared: LiveHost, vm: str) -> None:
    pid = qemu_pid(shared, vm)
    fire(shared, vm, "sleep 1; poweroff -f")
    shared.kill()
    time.sleep(3)
    assert Path(f"/proc/{pid}").exists()
    shared.start()
    view = shared.vm(vm)
    assert view.state is VmState.OFF and view.failure is None
    check_invariants(shared)


def test_a_guest_that_restarts_stays_running(shared: LiveHost, vm: str) -> None:
    pid, boot_id = qemu_pid(shared, vm), shared.run_in(vm, _BOOT_ID)
    after = newest(shared)
    fire(shared, vm, "reboot -f")
    deadline = time.monotonic() + 60
    while "vm.guest-restarted" not in kinds(shared, vm, after):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert shared.wait_agent(vm).state is VmState.RUNNING
    assert qemu_pid(shared, vm) == pid
    assert shared.run_in(vm, _BOOT_ID) != boot_id
    # A machine may reset more than once in one restart of its guest.
    assert set(changes(shared, vm, after)) == {"vm.guest-restarted"}
    # That nothing is known of the guest is not told again.
    agents = [each["data"].get("agent", each["kind"]) for each in recent(shared, vm)]
    assert "waiting" not in agents[len(agents) - agents[::-1].index("vm.guest-restarted") :]


def test_a_panic_of_the_guests_kernel_is_told(shared: LiveHost, vm: str) -> None:
    after = newest(shared)
    fire(shared, vm, "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    deadline = time.monotonic() + 60
    while "vm.guest-restarted" not in kinds(shared, vm, after):
        assert time.monotonic() < deadline, (kinds(shared, vm, after), shared.console(vm))
        time.sleep(0.1)
    assert "vm.guest-panicked" in kinds(shared, vm, after)
    assert shared.wait_agent(vm).state is VmState.RUNNING  # the small guest restarts after a panic


def test_a_killed_qemu_is_a_failure_with_its_log(shared: LiveHost, vm: str) -> None:
    log = shared.state.vm(vm) / "qemu.log"
    with log.open("a") as file:
        file.write("the last words of QEMU\n")
    os.kill(qemu_pid(shared, vm), signal.SIGKILL)
    view = shared.wait_state(vm, VmState.FAILED)
    assert view.failure is not None and "the last words of QEMU" in view.failure.log_tail
    assert view.addresses == () and view.guest.agent == "off"
    check_invariants(shared, failed=frozenset({vm}))
    assert changes(shared, vm)[-1] == "vm.failed"
    shared.do("POST", f"/v1/vms/{vm}/start")
    started = shared.wait_agent(vm)
    assert started.state is VmState.RUNNING and started.failure is None


def test_a_qemu_killed_without_a_daemon_is_a_failure_at_its_return(shared: LiveHost, vm: str) -> None:
    with (shared.state.vm(vm) / "qemu.log").open("a") as file:
        file.write("the last words of QEMU\n")
    pid = qemu_pid(shared, vm)
    shared.kill()
    os.kill(pid, signal.SIGKILL)
    shared.start()
    view = shared.vm(vm)
    assert view.state is VmState.FAILED
    assert view.failure is not None and "the last words of QEMU" in view.failure.log_tail
    check_invariants(shared, failed=frozenset({vm}))


def _deafen(host: LiveHost, name: str) -> None:
    """No power button and no agent any more."""
    script = "killall acpid; (sleep 0.5; kill -STOP $(cat /run/qga.pid)) >/dev/null 2>&1 </dev/null &"
    host.run_in(name, script)
    time.sleep(1)


def test_a_guest_that_will_not_stop_runs_on(shared: LiveHost, vm: str) -> None:
    _deafen(shared, vm)
    pid, after = qemu_pid(shared, vm), newest(shared)
    began = time.monotonic()
    ended = shared.end_of(begin(shared, vm, "stop", timeout_seconds=4))
    assert time.monotonic() - began < 10
    assert ended.state is OperationState.FAILED and ended.error is not None
    assert ended.error["id"] == "guest-did-not-stop" and ended.error["kind"] == "TimedOut"
    assert ended.error["value"] == 4 and vm in ended.error["message"] and "kill" in ended.error["cure"]
    assert shared.vm(vm).state is VmState.RUNNING and qemu_pid(shared, vm) == pid
    assert changes(shared, vm, after) == ["vm.stopping", "vm.stop-given-up"]
    check_invariants(shared)
    assert VmView.model_validate(shared.call("POST", f"/v1/vms/{vm}/kill")).state is VmState.OFF


def test_a_stop_can_be_cancelled_and_killed(shared: LiveHost, vm: str) -> None:
    _deafen(shared, vm)
    stop = begin(shared, vm, "stop", timeout_seconds=60)
    shared.wait_state(vm, VmState.STOPPING)
    error = refusal(shared, "POST", f"/v1/vms/{vm}/save")
    assert error.wire_id == "vm-busy" and error.value == stop.id and stop.id in error.cure
    shared.call("POST", f"/v1/operations/{stop.id}/cancel")
    assert shared.end_of(stop, limit=30).state is OperationState.CANCELLED
    assert shared.vm(vm).state is VmState.RUNNING
    check_invariants(shared)
    # The daemon is killed in the middle of a stop: it goes on afterwards, and `kill` ends it.
    stop = begin(shared, vm, "stop", timeout_seconds=120)
    shared.wait_state(vm, VmState.STOPPING)
    shared.kill()
    shared.start()
    assert shared.vm(vm).operation == stop.id
    shared.call("POST", f"/v1/vms/{vm}/kill")
    assert shared.end_of(stop, limit=30).state is OperationState.SUCCEEDED
    assert shared.vm(vm).state is VmState.OFF
    check_invariants(shared)


def test_new_settings_wait_for_the_next_start(shared: LiveHost, vm: str) -> None:
    """A guest this small was started without room for more memory; `test_sizes` has one with it."""
    had = _memory(shared, vm)
    view = VmView.model_validate(shared.call("PATCH", f"/v1/vms/{vm}", {"memory": "128MiB"}))
    assert view.pending == {"memory": 128 * 1024 * 1024}
    assert "no room for more memory" in view.waits["memory"]
    assert _memory(shared, vm) == had
    shared.do("POST", f"/v1/vms/{vm}/restart")
    assert shared.wait_agent(vm).pending == {}
    assert _memory(shared, vm) > had + 24 * 1024


def _memory(host: LiveHost, name: str) -> int:
    """KiB that the guest's kernel manages."""
    return int(host.run_in(name, "grep MemTotal /proc/meminfo").split()[1])


def test_delete_by_force_ends_what_is_under_way(shared: LiveHost, vm: str) -> None:
    _deafen(shared, vm)
    stop = begin(shared, vm, "stop", timeout_seconds=100)
    shared.wait_state(vm, VmState.STOPPING)
    shared.do("DELETE", f"/v1/vms/{vm}", force="true")
    shared.end_of(stop, limit=30)
    assert refusal(shared, "GET", f"/v1/vms/{vm}").wire_id == "vm-not-found"
    check_invariants(shared)


# A machine's doors, on one VM that stays


def execute(host: LiveHost, name: str, *argv: str, **more: object) -> dict[str, object]:
    answer: dict[str, object] = host.call("POST", f"/v1/vms/{name}/exec", {"argv": argv, **more})
    return answer


def test_a_screenshot_is_a_picture(shared: LiveHost, steady: str) -> None:
    with shared.client() as client:
        picture = client.screenshot(steady)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and picture.rstrip(b"\0")[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", picture[16:24])
    assert width >= 320 and height >= 200
    assert not list(shared.state.vm_runtime(shared.vm(steady).id).glob("*.png"))


def test_the_console_is_a_conversation(shared: LiveHost, steady: str) -> None:
    with shared.client() as client, client.websocket(steady, "console") as console:
        console.send(b"\necho $((6 * 7))-answer\n")
        heard = b""
        while b"42-answer" not in heard:
            heard += console.recv(timeout=20)
    # The door opens again after it was left.
    with shared.client() as client, client.websocket(steady, "console") as console:
        console.send(b"\n")
        assert console.recv(timeout=20)
    lines = shared.call("GET", f"/v1/vms/{steady}/log", lines=50)
    assert any("42-answer" in line for line in lines)


def test_programs_run_in_the_guest(shared: LiveHost, steady: str) -> None:
    assert execute(shared, steady, "cat", stdin="grüße\n")["stdout"] == "grüße\n"
    answer = execute(shared, steady, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (answer["exit_code"], answer["stdout"], answer["stderr"]) == (7, "out\n", "err\n")
    assert execute(shared, steady, "sh", "-c", "kill -9 $$")["signal"] == 9
    answer = execute(shared, steady, "sh", "-c", "head -c 900000 /dev/zero | tr '\\0' x")
    assert len(str(answer["stdout"])) == 900_000 and not answer["truncated"]
    answer = execute(shared, steady, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
    assert len(str(answer["stdout"])) == 1 << 20 and answer["truncated"]
    began = time.monotonic()
    body = {"argv": ["sleep", "30"], "timeout_seconds": 1}
    error = refusal(shared, "POST", f"/v1/vms/{steady}/exec", body)
    assert error.wire_id == "agent-timed-out" and error.cure and time.monotonic() - began < 6
    error = refusal(shared, "POST", f"/v1/vms/{steady}/exec", {"argv": ["/no/such/program"]})
    assert error.wire_id == "agent-refused"
    assert execute(shared, steady, "echo", "still there")["stdout"] == "still there\n"


def test_every_log_can_be_read(shared: LiveHost, steady: str) -> None:
    for source in ("console", "qemu", "swtpm"):
        assert isinstance(shared.call("GET", f"/v1/vms/{steady}/log", source=source, lines=5), list)
    assert refusal(shared, "GET", f"/v1/vms/{steady}/log", source="../../etc/passwd").wire_id == "bad-request"


def test_a_vm_runs_as_a_user_of_its_own(shared: LiveHost, steady: str) -> None:
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{qemu_pid(shared, steady)}/status").read_text().splitlines()
        if ":" in line
    )
    assert status["Seccomp"].strip() == "2" and int(status["CapEff"], 16) == 0
    if os.getuid() == 0:
        assert len(set(status["Uid"].split())) == 1 and int(status["Uid"].split()[0]) > 1_900_000_000


def _disc(folder: Path, text: str) -> Path:
    (folder / text).mkdir()
    (folder / text / "content").write_text(text)
    disc = folder / f"{text}.iso"
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", disc, folder / text], check=True)
    return disc


def test_a_disc_is_changed_while_the_guest_runs(shared: LiveHost, small: SmallGuest, tmp_path: Path) -> None:
    for text in ("first", "second"):
        shared.add_image(_disc(tmp_path, text), f"{text}-disc", "iso")
    shared.do("POST", "/v1/vms", small_vm("discs", small.append, iso="first-disc", start=True))
    shared.wait_agent("discs")
    read = "mkdir -p /cd; mount -t iso9660 -o ro /dev/sr0 /cd; cat /cd/*; umount /cd"
    assert "first" in shared.run_in("discs", read).lower()
    shared.call("PATCH", "/v1/vms/discs", {"iso": "second-disc"})
    deadline = time.monotonic() + 30
    while "second" not in execute(shared, "discs", "sh", "-c", read)["stdout"].lower():  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    shared.call("PATCH", "/v1/vms/discs", {"iso": ""})
    assert execute(shared, "discs", "sh", "-c", "mount -t iso9660 /dev/sr0 /cd")["exit_code"] != 0
    assert refusal(shared, "DELETE", "/v1/images/small-kernel").wire_id == "image-in-use"
    shared.do("DELETE", "/v1/vms/discs", force="true")
    for text in ("first", "second"):
        shared.call("DELETE", f"/v1/images/{text}-disc")
    check_invariants(shared)
