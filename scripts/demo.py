"""The demo after set-up: an image, a first VM, and what its guest says of itself.

Every step is an ordinary `holdfast` command that a person could type; what exists already is left
as it is, so running the demo again only shows the table.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

HOLDFAST = str(Path(sys.executable).parent / "holdfast")
NOT_FOUND = 3
"""The command line's exit code for what does not exist."""
IMAGE = "debian-12"
VM = "first"
SHAPE = ["--memory", "1GiB", "--disk", "8GiB"]
NEXT = (
    (f"./run holdfast vm console {VM}", "the guest's serial console"),
    (f"./run holdfast vm exec {VM} -- uname -a", "a command in the guest, through its agent"),
    ("./run holdfast host check", "what this host can do, and the cure for what it cannot"),
)


def holdfast(*args: str) -> None:
    """Run one command, its own output and progress visible; a failure ends the demo."""
    sys.stderr.write(f"$ holdfast {' '.join(args)}\n")
    done = subprocess.run([HOLDFAST, *args], check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


def look(*args: str) -> dict[str, Any] | None:
    """What a `show` command says; None where the thing does not exist."""
    done = subprocess.run([HOLDFAST, *args, "--format", "json"], check=False, capture_output=True, text=True)
    if done.returncode == NOT_FOUND:
        return None
    if done.returncode != 0:
        sys.stderr.write(done.stderr or done.stdout)
        raise SystemExit(done.returncode)
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def cpus() -> str:
    """Two; one under emulation, where a guest's second CPU now and then gets no timer and the guest hangs."""
    lines: Any = look("host", "check") or []
    carried = any(line["id"] == "acceleration" and line["status"] == "ok" for line in lines)
    return "2" if carried else "1"


def bring_up() -> dict[str, Any]:
    if look("image", "show", IMAGE) is None:
        holdfast("image", "build", IMAGE)
    vm = look("vm", "show", VM)
    if vm is None:
        holdfast("vm", "create", VM, "--image", IMAGE, "--cpus", cpus(), *SHAPE, "--start")
    elif vm["state"] in ("off", "saved", "failed"):
        holdfast("vm", "start", VM)
    elif vm["state"] == "paused":
        holdfast("vm", "resume", VM)
    holdfast("vm", "wait", VM, "--agent", "--address")
    vm = look("vm", "show", VM)
    if vm is None:
        raise SystemExit(f"the VM {VM} has gone away")
    return vm


def known(value: Any, words: dict[Any, str] | None = None) -> str:
    """Text for a table cell; a value that the guest has not told is a dash."""
    if value is None:
        return "-"
    return (words or {}).get(value, str(value))


def plain(text: str) -> Text:
    """Guests have a say in some of this text: no markup and no control characters of theirs."""
    return Text("".join(each if each.isprintable() else "?" for each in text))


def table(vm: dict[str, Any]) -> Table:
    guest = vm["guest"]
    boot = vm["boot_seconds"]
    shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for title, text in (
        ("VM", f"{vm['name']} ({vm['state']})"),
        ("Address", known(", ".join(vm["addresses"]) or None)),
        ("Secure Boot", known(guest["secure_boot"], {True: "enabled", False: "disabled"})),
        ("TPM", known(guest["tpm_version"])),
        ("Acceleration", known(vm["acceleration"], {"kvm": "KVM", "tcg": "TCG (emulation: slower)"})),
        ("Boot time", "-" if boot is None else f"{boot:.1f} s"),
    ):
        shown.add_row(title, plain(text))
    return shown


def main() -> None:
    vm = bring_up()
    console = Console(highlight=False)
    console.print()
    console.print(table(vm))
    for notice in vm["notices"]:
        console.print(plain(f"Notice: {notice}"))
    console.print("\nNow try:")
    following = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    following.add_column(no_wrap=True)
    following.add_column(overflow="fold")
    for command, meaning in NEXT:
        following.add_row(command, meaning)
    console.print(following)


if __name__ == "__main__":
    main()
