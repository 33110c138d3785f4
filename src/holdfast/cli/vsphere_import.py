"""`vm import vsphere://...`: the password, a certificate seen for the first time, and the request."""

import contextlib
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from holdfast.cli.output import Format, escape, print_json, say, table
from holdfast.cli.secret_input import given
from holdfast.cli.sheets.appliance import plan_sheet
from holdfast.cli.waiting import finish
from holdfast.spec.errors import InvalidInput, RemoteError
from holdfast.spec.units import format_size
from holdfast.spec.vsphere import SCHEME, parse_address

PASSWORD_VARIABLE = "HOLDFAST_VSPHERE_PASSWORD"  # noqa: S105  (its name)


class OneVsphereSource(InvalidInput):
    id = "one-vsphere-source"


class OnlyFromVsphere(InvalidInput):
    id = "only-from-vsphere"


class NotFromVsphere(InvalidInput):
    id = "not-from-vsphere"


class NoVsphereUser(InvalidInput):
    id = "no-vsphere-user"


class PasswordFileOpen(InvalidInput):
    id = "password-file-open"


@dataclass(frozen=True)
class VsphereOptions:
    """Options of `vm import` that only an address of vSphere takes."""

    user: str | None
    password_file: Path | None
    thumbprint: str | None
    list: bool
    warm: bool
    cut_over_at: datetime | None

    def require_none(self) -> None:
        """Raises OnlyFromVsphere where one is given."""
        if any((self.user, self.password_file, self.thumbprint, self.list, self.warm, self.cut_over_at)):
            raise OnlyFromVsphere(
                "--list, --warm, --cut-over-at, --user, --password-file and --thumbprint are for vSphere",
                cure="Give an address that begins with vsphere://, or leave them out.",
            )

    def choices(self, body: dict[str, Any]) -> dict[str, Any]:
        """A VsphereImport without its source; `body` is a VmImport without its files."""
        at = self.cut_over_at.astimezone().isoformat() if self.cut_over_at else None
        choices = {key: value for key, value in body.items() if key != "machine"}
        return {**choices, "warm": self.warm, "cut_over_at": at}


def is_vsphere(sources: list[str]) -> bool:
    return any(each.startswith(SCHEME) for each in sources)


def refuse_of_files(*given: object) -> None:
    """Options that only a file or a folder takes. Raises NotFromVsphere where one is given."""
    if any(given):
        raise NotFromVsphere(
            "--with, --machine, --checksum, --passphrase-file, --private-key and --same-tpm are for files",
            cure="Leave them out; the VM is named in the address.",
        )


def import_from_vsphere(
    sources: list[str],
    options: VsphereOptions,
    body: dict[str, Any],
    plan: bool,
    no_wait: bool,
    format_: Format,
) -> None:
    """List, plan or import; `body`: a VmImport without its files.

    Raises OneVsphereSource, BadVsphereAddress, NoVsphereUser, PasswordFileOpen, RemoteError.
    """
    from holdfast.cli.session import connect

    if len(sources) != 1:
        raise OneVsphereSource(
            "a VM of vSphere is imported by a command of its own",
            value=len(sources),
            cure="Give one vsphere:// address; --no-wait lets several go on at once.",
        )
    access = _access(sources[0], options)
    request = options.choices(body)
    with connect() as client:
        if options.list:
            _show(_asked(client, "/v1/imports/vsphere/list", access, {}), format_)
            return
        if plan:
            found = _asked(client, "/v1/imports/vsphere/plan", access, request)
            if format_ is Format.JSON:
                print_json(found)
            else:
                sys.stdout.write(plan_sheet(found))
            return
        wire = _asked(client, "/v1/imports/vsphere", access, request)
        result = finish(client, wire, format_, no_wait)
    started = (result["result"] or {}).get("start_error")
    if started:
        raise RemoteError(started)


def _access(address: str, options: VsphereOptions) -> dict[str, Any]:
    user = options.user or parse_address(address).user
    if not user:
        raise NoVsphereUser(
            "the address names no user",
            value=address,
            cure="Give one with --user, or write vsphere://USER@HOST/... (an @ in the name as %40).",
        )
    return {
        "address": address,
        "user": user,
        "password": _password(options.password_file),
        "thumbprint": options.thumbprint,
    }


def _password(file: Path | None) -> str:
    """From a file that is nobody else's, the environment, a prompt or standard input, in that order.

    Raises PasswordFileOpen, NoSuchFile, NoSecretGiven.
    """
    if file is None and (held := os.environ.get(PASSWORD_VARIABLE)):
        return held
    if file is not None and str(file) != "-":
        path = file.expanduser()
        with contextlib.suppress(OSError):
            if path.stat().st_mode & 0o077:
                raise PasswordFileOpen(
                    f"others can read {str(path)!r}", value=str(path), cure=f"chmod 600 {path}"
                )
    return given(file, "Password")


def _asked(client: Any, path: str, access: dict[str, Any], request: dict[str, Any]) -> Any:
    """The answer; a certificate that nobody here knows is shown on a terminal, and asked about."""

    def body() -> dict[str, Any]:
        return {**request, "source": access} if request else access

    try:
        return client.wire("POST", path, body())
    except RemoteError as refused:
        if refused.wire_id != "vsphere-certificate-unknown" or not sys.stdin.isatty():
            raise
        sys.stderr.write(f"{escape(refused.message)}.\nIs it the server's own? It is kept then. [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise
        access["thumbprint"] = refused.value
        say(f"Trusting {refused.value} from now on.")
        return client.wire("POST", path, body())


def _show(machines: list[dict[str, Any]], format_: Format) -> None:
    if format_ is Format.JSON:
        print_json(machines)
        return
    columns = ("datacenter", "name", "state", "cpus", "memory", "storage", "firmware", "cbt", "snapshots")
    table(
        columns,
        (
            (
                each["datacenter"],
                each["name"],
                "running" if each["running"] else "off",
                each["cpus"],
                format_size(each["memory"]),
                format_size(each["storage"]),
                each["firmware"] or "-",
                "on" if each["change_tracking"] else "off",
                "yes" if each["snapshots"] else "no",
            )
            for each in machines
        ),
    )
