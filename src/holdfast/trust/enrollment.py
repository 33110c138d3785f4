"""New variable stores for VMs, with Secure Boot keys enrolled by `virt-fw-vars`.

    <state folder>/firmware/<SHA-256 of template and key set>.fd     enrolled once, then copied

`virt-fw-vars` is a program of its own (licence: GPL-2.0-only) and is only ever run, never imported.
It takes more than a second, and makes the same of a template every time: so each template is enrolled once.
This store is ours alone, yet it is read back each time that it is used, and made again where it is damaged.

    PK    Windows OEM Devices PK 2023: updates of KEK that Microsoft signs for the 2023 hand-over
          are accepted by the guest; Debian's build has a key of its own there, which signs none
    KEK   Microsoft KEK CA 2011 and 2023
    db    Windows PCA 2011 and 2023, UEFI CA 2011 and 2023, Option ROM UEFI CA 2023
    dbx   one entry that matches nothing; virt-firmware carries no revocation list, so the guest's
          own updater (or Shim's SBAT level) brings it
"""

import asyncio
import hashlib
import sys
from pathlib import Path

import structlog

from holdfast.host.files import own, write_atomic
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.spec.errors import Failed
from holdfast.spec.ids import new_id
from holdfast.trust.variables import VariablesDamaged, VariablesSummary, read_store, summarize

log = structlog.get_logger(__name__)

_KEY_SET = ("--enroll-microsoft", "--microsoft-kek", "all", "--microsoft-db", "all", "--sb")
_PATIENCE = 60.0  # seconds
_TAIL = 4096
_ENROLLED = (
    ("PK", "Windows OEM Devices PK"),
    ("KEK", "Microsoft Corporation KEK CA 2011"),
    ("KEK", "Microsoft Corporation KEK 2K CA 2023"),
    ("db", "Microsoft Windows Production PCA 2011"),
    ("db", "Windows UEFI CA 2023"),
    ("db", "Microsoft Corporation UEFI CA 2011"),
    ("db", "Microsoft UEFI CA 2023"),
)


class EnrollmentFailed(Failed):
    id = "enrollment-failed"


class VariableStores:
    """Makes the variable stores of one state folder's VMs; owner of its folder `firmware`."""

    def __init__(self, processes: Processes, state: StateFolder) -> None:
        self._processes = processes
        self._state = state
        self._enrolling = asyncio.Lock()

    async def make(
        self, template: Path, target: Path, secure_boot: bool, identity: Identity | None = None
    ) -> VariablesSummary:
        """Write a new VM's variable store to `target` (0600, given to `identity`); atomic, durable.

        `template` is the EMPTY store of the distribution (`FirmwareBuild.template`).

        Raises:
            VariablesDamaged: the template is no variable store.
            EnrollmentFailed: the keys could not be enrolled, or do not read back as meant.
            ProgramMissing: `virt-fw-vars` is not installed.
        """
        data = await asyncio.to_thread(read_store, template)
        summary = await asyncio.to_thread(summarize, data, template)
        if secure_boot:
            data, summary = await self._enrolled(template, data)
        elif summary.certificates:
            raise EnrollmentFailed(
                f"the template {template} holds keys, so Secure Boot cannot be left off",
                value=str(template),
                cure="Check that the package `ovmf` is whole.",
            )

        def put() -> None:
            write_atomic(target, data, 0o600)
            if identity:
                own(target, identity.uid, identity.gid)

        await asyncio.to_thread(put)
        return summary

    async def enrolled(self, template: Path) -> bytes:
        """The store of a new VM with Secure Boot, made from an empty one. Raises as `make`."""
        data, _ = await self._enrolled(template, await asyncio.to_thread(read_store, template))
        return data

    async def _enrolled(self, template: Path, data: bytes) -> tuple[bytes, VariablesSummary]:
        kept = self._state.firmware / f"{_digest(data)}.fd"
        async with self._enrolling:
            if kept.exists():
                try:
                    return await asyncio.to_thread(_verified, kept)
                except (VariablesDamaged, EnrollmentFailed) as error:
                    log.warning("an enrolled variable store is damaged; made again", error=error.message)
            return await self._enroll(template, kept)

    async def _enroll(self, template: Path, kept: Path) -> tuple[bytes, VariablesSummary]:
        scratch = self._state.scratch / f"variables-{new_id()}.fd"
        try:
            done = await self._processes.run(
                [fw_vars_program(), "--input", str(template), "--output", str(scratch), *_KEY_SET],
                owner="host",
                timeout=_PATIENCE,
            )
            if done.returncode != 0 or not scratch.exists():
                raise EnrollmentFailed(
                    f"virt-fw-vars ended with code {done.returncode} for {template}",
                    value=done.returncode,
                    cure="Check that `ovmf` and the Python package `virt-firmware` are whole.",
                    detail={"log": (done.stdout + done.stderr)[-_TAIL:].decode(errors="replace")},
                )
            data, summary = await asyncio.to_thread(_verified, scratch)
            await asyncio.to_thread(write_atomic, kept, data, 0o600)
        finally:
            scratch.unlink(missing_ok=True)
        return data, summary


def fw_vars_program() -> str:
    """Of our own environment; else, where a distribution packages it, of the PATH."""
    beside = Path(sys.executable).parent / "virt-fw-vars"
    return str(beside) if beside.exists() else beside.name


def _digest(template: bytes) -> str:
    return hashlib.sha256(" ".join(_KEY_SET).encode() + b"\0" + template).hexdigest()


def _verified(path: Path) -> tuple[bytes, VariablesSummary]:
    data = read_store(path)
    summary = summarize(data, path)
    if not summary.secure_boot or not all(_holds(summary, *pair) for pair in _ENROLLED):
        raise _not_as_meant(path, summary)
    return data, summary


def _not_as_meant(path: Path, summary: VariablesSummary) -> EnrollmentFailed:
    missing = [list(pair) for pair in _ENROLLED if not _holds(summary, *pair)]
    return EnrollmentFailed(
        f"the keys for Secure Boot in {path} are not as meant",
        value=missing,
        cure="Check that `ovmf` and the Python package `virt-firmware` are whole.",
    )


def _holds(summary: VariablesSummary, variable: str, common_name: str) -> bool:
    return any(found.variable == variable and common_name in found.subject for found in summary.certificates)
