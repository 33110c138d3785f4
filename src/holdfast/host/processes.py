"""Child processes: those that outlive the daemon, those that must not, and finding both again.

Every child carries three marks in its environment: the state folder it belongs to, its owner
(`vm:<id>`, `switch:<name>`, `operation:<id>`, `host`) and its role (`qemu`, `swtpm`, `dnsmasq`,
`tool`, ...). After a `kill -9` the next daemon scans /proc for them: what a record accounts for
is adopted, the rest is ended. /proc is the only owner of this knowledge; no pid files.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.host.folders import StateFolder
from holdfast.spec.errors import Failed, TimedOut, Unsupported

_PR_SET_PDEATHSIG = 1
_KEPT_OUTPUT = 1024 * 1024
_EXEC_SECONDS = 5.0
_LONGEST_ANSWER = 16 * 1024 * 1024
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "USER", "LOGNAME")
_libc = ctypes.CDLL(None, use_errno=True)


class ProgramMissing(Unsupported):
    id = "program-missing"


class ToolTimedOut(TimedOut):
    id = "tool-timed-out"


class SpawnFailed(Failed):
    id = "spawn-failed"


@dataclass(frozen=True)
class Identity:
    """Whom a child runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProcessRef:
    """One process for ever: a pid that was given to another program later does not match."""

    pid: int
    started: int
    """Clock ticks after boot: field 22 of /proc/PID/stat, proc(5)."""


@dataclass(frozen=True)
class Marked:
    ref: ProcessRef
    owner: str
    role: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """setrlimit(2) bounds; bytes and seconds. None leaves one as it is."""

    address_space: int | None = None
    cpu_seconds: int | None = None
    file_size: int | None = None
    open_files: int | None = None


@dataclass(frozen=True)
class Completed:
    returncode: int
    stdout: bytes
    """The last mebibyte at most."""
    stderr: bytes


def started_at(pid: int) -> int | None:
    """Start time of a process in clock ticks; None where it is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _await_marks(pid: int) -> None:
    """execve(2) closes Popen's pipe before it lays out the environment: for a moment no marks are there."""
    deadline = time.monotonic() + _EXEC_SECONDS
    with contextlib.suppress(OSError):  # gone already, or another user's
        while not Path(f"/proc/{pid}/environ").read_bytes() and started_at(pid) is not None:
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)


def _set_limits(limits: Limits) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, limits.address_space),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_NOFILE, limits.open_files),
    ):
        if value is not None:
            resource.setrlimit(kind, (value, value))


class Processes:
    """Starts and finds the children of one state folder's daemon."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._reapers: set[asyncio.Task[None]] = set()

    def _environment(self, owner: str, role: str, extra: Mapping[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # Tools such as mkfs.ext4 and nft are not on the path of Debian's ordinary users.
        kept["PATH"] = f"{kept.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        marks = {"HOLDFAST_STATE": self._state.mark, "HOLDFAST_OWNER": owner, "HOLDFAST_ROLE": role}
        return {"LC_ALL": "C.UTF-8", **kept, **extra, **marks}

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        owner: str,
        role: str,
        log: Path,
        identity: Identity | None = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        umask: int = 0o077,
    ) -> ProcessRef:
        """Start a process that outlives the daemon: own session, output appended to `log`.

        Raises:
            ProgramMissing: the program is not installed.
            SpawnFailed: it could not be started.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        output = os.open(log, flags, 0o600)
        try:
            # Off the loop: fork and exec of a large parent can take milliseconds.
            child = await asyncio.to_thread(
                self._popen,
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(owner, role, env or {}),
                start_new_session=True,
                pass_fds=tuple(pass_fds),
                umask=umask,
                **_as_user(identity),
            )
        finally:
            os.close(output)
        started = started_at(child.pid)
        # Reaped as soon as it ends, so that no zombie of a stopped VM is left.
        task = asyncio.ensure_future(self._reap(child))
        self._reapers.add(task)
        task.add_done_callback(self._reapers.discard)
        return ProcessRef(child.pid, started or 0)

    @staticmethod
    def _popen(argv: Sequence[str], **options: object) -> "subprocess.Popen[bytes]":
        try:
            child = subprocess.Popen(list(argv), **options)  # type: ignore[call-overload]
        except FileNotFoundError as error:
            raise _missing(argv[0]) from error
        except OSError as error:
            raise SpawnFailed(f"{argv[0]} could not be started: {error.strerror}", value=argv[0]) from error
        _await_marks(child.pid)
        return child  # type: ignore[no-any-return]

    async def _reap(self, child: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            await _gone(child.pid)
        child.wait()

    async def run(
        self,
        argv: Sequence[str],
        *,
        owner: str,
        role: str = "tool",
        identity: Identity | None = None,
        limits: Limits | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (a tool's limit ends its whole process group)
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run a tool to its end. It ends with the daemon and with the awaiting task.

        Raises:
            ProgramMissing: the program is not installed.
            ToolTimedOut: it ran longer than `timeout` seconds and was ended.
        """

        child = await self._start_tool(
            argv,
            limits,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            env=self._environment(owner, role, env or {}),
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            **_as_user(identity),
        )
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr, _, returncode = await asyncio.gather(
                    _tail(child.stdout, on_stdout),
                    _tail(child.stderr, None),
                    _feed(child.stdin, stdin),
                    child.wait(),
                )
        except TimeoutError as error:
            raise _overdue(argv[0], timeout or 0.0) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if child.returncode is None:
                await asyncio.shield(child.wait())
        return Completed(returncode, stdout, stderr)

    async def converse(
        self, argv: Sequence[str], *, owner: str, say: bytes, heard: Callable[[bytes], bool], limit: float
    ) -> Completed:
        """Run a program that answers and does not end: until `heard` is true of its output, or it ends.

        Raises:
            ProgramMissing: the program is not installed.
            ToolTimedOut: neither happened within `limit` seconds.
        """
        child = await self._start_tool(
            argv, None, stdin=subprocess.PIPE, env=self._environment(owner, "tool", {})
        )
        said = bytearray()
        errors = asyncio.ensure_future(_tail(child.stderr, None))
        try:
            async with asyncio.timeout(limit):
                assert child.stdin and child.stdout  # noqa: S101  (pipes were asked for)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    child.stdin.write(say)
                    await child.stdin.drain()
                while len(said) < _LONGEST_ANSWER and (chunk := await child.stdout.read(65536)):
                    said += chunk
                    if heard(bytes(said)):
                        break
        except TimeoutError as error:
            raise _overdue(argv[0], limit) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await asyncio.shield(child.wait())
        return Completed(child.returncode or 0, bytes(said), await errors)

    @staticmethod
    async def _start_tool(
        argv: Sequence[str], limits: Limits | None, **options: Any
    ) -> asyncio.subprocess.Process:
        def prepare() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if limits:
                _set_limits(limits)

        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=prepare,
                **options,
            )
        except FileNotFoundError as error:
            raise _missing(argv[0]) from error

    def find(self, owner: str | None = None, role: str | None = None) -> list[Marked]:
        """Living processes with this folder's mark, of one owner or role where these are given."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            marked = self._marked(entry)
            if marked and owner in (None, marked.owner) and role in (None, marked.role):
                found.append(marked)
        return found

    def _marked(self, entry: Path) -> Marked | None:
        try:
            environment = (entry / "environ").read_bytes()
            if b"HOLDFAST_STATE=" not in environment:
                return None
            argv = (entry / "cmdline").read_bytes()
        except OSError:
            return None
        marks = dict(item.split(b"=", 1) for item in environment.split(b"\0") if b"=" in item)
        started = started_at(int(entry.name))
        if marks.get(b"HOLDFAST_STATE", b"").decode() != self._state.mark or started is None:
            return None
        return Marked(
            ref=ProcessRef(int(entry.name), started),
            owner=marks.get(b"HOLDFAST_OWNER", b"").decode(errors="replace"),
            role=marks.get(b"HOLDFAST_ROLE", b"").decode(errors="replace"),
            argv=tuple(part.decode(errors="replace") for part in argv.split(b"\0")[:-1]),
        )

    def alive(self, ref: ProcessRef) -> bool:
        return started_at(ref.pid) == ref.started

    async def wait(self, ref: ProcessRef) -> None:
        """Return when the process is gone (pidfd_open(2); no polling)."""
        with contextlib.suppress(ProcessLookupError):
            await _gone(ref.pid, still=lambda: self.alive(ref))

    async def end(self, ref: ProcessRef, grace: float = 5.0) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds (at once where that is 0); returns when it is gone."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
            if patience == 0:
                continue
            if not self.alive(ref):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(ref.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.wait(ref)


def _overdue(program: str, limit: float) -> ToolTimedOut:
    return ToolTimedOut(
        f"{Path(program).name} did not finish within {limit:g} seconds",
        value=program,
        cure="Try again when the host is less busy.",
    )


def _missing(program: str) -> ProgramMissing:
    return ProgramMissing(
        f"the program {program} is not installed",
        value=program,
        cure="Install the package that holds it; `holdfast host check` names it.",
    )


def _as_user(identity: Identity | None) -> dict[str, Any]:
    if identity is None:
        return {}
    return {"user": identity.uid, "group": identity.gid, "extra_groups": list(identity.groups)}


async def _gone(pid: int, still: Callable[[], bool] | None = None) -> None:
    fd = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        # The pid may have been recycled between the caller's look and our pidfd.
        if still is not None and not still():
            return
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)


async def _tail(stream: asyncio.StreamReader | None, seen: Callable[[bytes], None] | None) -> bytes:
    kept = bytearray()
    while stream is not None and (chunk := await stream.read(65536)):
        if seen:
            seen(chunk)
        kept += chunk
        del kept[:-_KEPT_OUTPUT]
    return bytes(kept)


async def _feed(stream: asyncio.StreamWriter | None, data: bytes | None) -> None:
    if stream is None or data is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    stream.close()
