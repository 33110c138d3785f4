"""Nothing that happens to the daemon harms a VM: kill -9 at random moments of a random mix of work.

Workers ask for this and that on several VMs; the daemon is killed again and again meanwhile. When
it is quiet: no VM that was promised is lost, none runs twice, no process, folder or socket is left
over, and records and reality agree.
"""

import random
import threading
import time
from pathlib import Path

import pytest
from invariants import check_invariants, wait_quiet
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.api.client import DaemonNotReachable
from holdfast.spec.errors import HoldfastError
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.vm import VmState

_WORKERS = 3
_VERBS = (
    "start",
    "start",
    "kill",
    "save",
    "pause",
    "resume",
    "stop",
    "restart",
    "rename",
    "clone",
    "checkpoint",
    "recreate",
)


class Worker(threading.Thread):
    """Works on VMs of its own; knows which of them were promised to exist."""

    def __init__(self, host: LiveHost, number: int, append: str, over: threading.Event) -> None:
        super().__init__(name=f"worker {number}")
        self._host = host
        self._random = random.Random(1000 + number)
        self._append = append
        self._over = over
        self._number = number
        self.done: dict[str, int] = {}
        self.kept: set[str] = set()
        """Names of VMs that must be there: creation succeeded, no deletion was ever asked for."""
        self.unsure: set[str] = set()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            serial = 0
            name = ""
            while not self._over.is_set():
                if not name or name not in self.kept:
                    serial += 1
                    name = f"w{self._number} vm {serial}"
                    self._create(name)
                    continue
                name = self._work(name, self._random.choice(_VERBS), serial)
        except BaseException as error:
            self.problem = error

    def _create(self, name: str) -> None:
        uefi = self._random.random() < 0.15
        body = small_vm(name, self._append, start=self._random.random() < 0.5)
        if uefi:
            body |= {"kernel": None, "memory": "128MiB", "start": False}
        self.unsure.add(name)
        if self._try("POST", "/v1/vms", body) is True:
            self.kept.add(name)
            self.unsure.discard(name)

    def _work(self, name: str, verb: str, serial: int) -> str:
        path = f"/v1/vms/{name}"
        if verb in ("pause", "resume", "kill"):
            self._try("POST", f"{path}/{verb}")
        elif verb in ("stop", "restart"):
            self._try("POST", f"{path}/{verb}", timeout_seconds=3)
        elif verb == "rename":
            return self._rename(name)
        elif verb == "clone":
            copy = f"{name} copy {self._random.randrange(10**6)}"
            self.unsure.add(copy)
            if self._try("POST", f"{path}/clone", {"name": copy}) is True:
                self._try("DELETE", f"/v1/vms/{copy}")
        elif verb == "checkpoint":
            self._try("POST", f"{path}/checkpoints", {})
        elif verb == "recreate":
            self.kept.discard(name)
            self.unsure.add(name)
            self._try("DELETE", path, force="true")
            return ""
        else:
            self._try("POST", f"{path}/{verb}")
        return name

    def _rename(self, name: str) -> str:
        new = f"{name.split(' r')[0]} r{self._random.randrange(10**6)}"
        self.unsure |= {name, new}
        self.kept.discard(name)
        self._try("POST", f"/v1/vms/{name}/rename", {"name": new})
        # A call that broke off may have done it or not: look.
        while not self._over.is_set():
            try:
                names = {each["name"] for each in self._host.call("GET", "/v1/vms", limit=1000)["items"]}
            except DaemonNotReachable:
                time.sleep(0.02)
                continue
            found = [each for each in (new, name) if each in names]
            assert found, (name, new, names)
            running = self._host_operations(name)
            if not running:
                self.kept.add(found[0])
                return found[0]
            time.sleep(0.02)
        return name

    def _host_operations(self, name: str) -> list[object]:
        try:
            page = self._host.call("GET", "/v1/operations", running="true", limit=1000)
        except DaemonNotReachable:
            return [None]
        return [each for each in page["items"] if each["subject"] == name]

    def _try(self, method: str, path: str, body: object = None, **query: object) -> bool | None:
        """True: succeeded. False: refused or failed. None: the daemon went away, who knows."""
        verb = f"{method} {path.rsplit('/', 1)[-1] if path.count('/') > 3 else ''}".strip()
        try:
            answer = self._host.call(method, path, body, **query)
            if "kind" not in answer:
                self.done[verb] = self.done.get(verb, 0) + 1
                return True
            ended = self._end_of(Operation.model_validate(answer))
        except DaemonNotReachable:
            time.sleep(0.02)
            return None
        except HoldfastError as error:
            assert error.as_dict()["id"] != "internal-error", error.as_dict()
            return False
        if ended is None:
            return None
        assert ended.error is None or ended.error["id"] != "internal-error", ended
        self.done[verb] = self.done.get(verb, 0) + (ended.state is OperationState.SUCCEEDED)
        return ended.state is OperationState.SUCCEEDED

    def _end_of(self, operation: Operation) -> Operation | None:
        """Its end, over any number of daemons."""
        while not self._over.is_set():
            try:
                return self._host.end_of(operation, limit=120)
            except DaemonNotReachable:
                time.sleep(0.02)
        return None


class Doubles(threading.Thread):
    """Looks all the time whether a VM runs twice."""

    def __init__(self, host: LiveHost, over: threading.Event) -> None:
        super().__init__(name="doubles")
        self._host = host
        self._over = over
        self.found: list[object] = []

    def run(self) -> None:
        while not self._over.wait(0.1):
            qemus = self._host.qemus()
            owners = [marked.owner for marked in qemus]
            if len(set(owners)) != len(owners):
                self.found.append(qemus)


def crash(host: LiveHost, small: SmallGuest, kills: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    over = threading.Event()
    host.do("POST", "/v1/vms", small_vm("anchor", small.append, start=True))
    host.wait_agent("anchor")
    anchor = host.qemus()[0]
    boot_id = host.run_in("anchor", "cat /proc/sys/kernel/random/boot_id")
    workers = [Worker(host, number, small.append, over) for number in range(_WORKERS)]
    doubles = Doubles(host, over)
    for thread in (*workers, doubles):
        thread.start()
    try:
        for _ in range(kills):
            time.sleep(chance.choice((0.02, 0.1, 0.3, 0.7, 1.5, 4)) * chance.random())
            host.kill()
            if chance.random() < 0.2:
                # Killed while it comes back, too.
                host.launch()
                time.sleep(1.5 * chance.random())
                host.kill()
            host.start()
        time.sleep(2)
    finally:
        over.set()
        for thread in (*workers, doubles):
            thread.join(180)
    for worker in workers:
        if worker.problem:
            raise worker.problem
    _check(host, workers, doubles)
    assert host.wait_agent("anchor").state is VmState.RUNNING
    assert anchor.ref in [marked.ref for marked in host.qemus()]
    assert host.run_in("anchor", "cat /proc/sys/kernel/random/boot_id") == boot_id
    totals: dict[str, int] = {}
    for worker in workers:
        for verb, count in worker.done.items():
            totals[verb] = totals.get(verb, 0) + count
    totals["operations begun"] = host.call("GET", "/v1/operations", limit=1)["total"]
    return totals


def _check(host: LiveHost, workers: list[Worker], doubles: Doubles) -> None:
    wait_quiet(host)
    time.sleep(1)
    assert doubles.found == []
    items = check_invariants(host)
    names = {str(each["name"]) for each in items}
    for worker in workers:
        assert worker.kept <= names, "lost: " + str(worker.kept - names)
    allowed = {"anchor"}.union(*(worker.kept | worker.unsure for worker in workers))
    assert names <= allowed, "from nowhere: " + str(names - allowed)
    assert all((host.state.vm(name) / "disk0.qcow2").exists() for name in names)


def test_kill_9_of_the_daemon_harms_nothing(host: LiveHost, small: SmallGuest) -> None:
    totals = crash(host, small, kills=12, seed=7)
    assert totals["operations begun"] > 10, totals


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_and_more_kills(tmp_path: Path, small: SmallGuest) -> None:
    with live_host(tmp_path) as running:
        totals = crash(with_small_images(running, small), small, kills=220, seed=time.time_ns())
    print(totals)
    assert totals["operations begun"] > 200, totals
