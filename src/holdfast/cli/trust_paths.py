"""Where the trust of a VM lies in the API, and the option that changes of policy share."""

from typing import Annotated

import typer

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would change.")]


def trust_path(name: str, rest: str = "") -> str:
    from holdfast.api.client import vm_path

    return vm_path(name, f"trust/{rest}" if rest else "trust")
