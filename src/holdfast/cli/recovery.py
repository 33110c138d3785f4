"""A recovery key on its way to the person who keeps it."""

import sys
from typing import Any

from holdfast.cli.output import Format, print_json, say


def new_recovery_key(client: Any, name: str, new: bool = False) -> str:
    """Make one; it cannot be had again."""
    from holdfast.api.client import vm_path

    made = client.wire("POST", vm_path(name, "recovery-key"), {"new": new})
    return str(made["recovery_key"])


def show_recovery_key(client: Any, name: str, new: bool, format_: Format) -> None:
    """Make and print one: the key alone on standard output, what to do with it beside it."""
    key = new_recovery_key(client, name, new)
    if format_ is Format.JSON:
        print_json({"vm": name, "recovery_key": key})
        return
    explain(name)
    sys.stdout.write(key + "\n")


def explain(name: str) -> None:
    say(f"The recovery key of {name}. Note it and keep it away from this host; it is not shown again.")
    say(f"With it `holdfast trust recover {name}` brings the VM's TPM back.")
