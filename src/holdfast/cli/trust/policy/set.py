"""`holdfast trust policy set`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.trust_paths import DryRun
from holdfast.spec.errors import InvalidInput

EXAMPLE = "holdfast trust policy set web policy.json --dry-run"
_LARGEST = 8 * 1024 * 1024


class PolicyNotJson(InvalidInput):
    id = "policy-not-json"


def command(
    name: VmArgument,
    file: Annotated[Path, typer.Argument(help="A policy as JSON, or - for standard input.")],
    dry_run: DryRun = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a VM a policy; of a running VM it is said what that changes."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.trust import policy_sheet
    from holdfast.cli.trust_paths import trust_path

    policy = _read(file)
    with connect() as client:
        answer = client.wire("PUT", trust_path(name, "policy"), policy, query={"dry_run": dry_run})
    show(answer, format_, policy_sheet)


def _read(file: Path) -> object:
    try:
        if str(file) == "-":
            return json.loads(sys.stdin.read(_LARGEST))
        with file.open(encoding="utf-8") as opened:
            return json.loads(opened.read(_LARGEST))
    except (ValueError, OSError, RecursionError) as error:
        raise PolicyNotJson(
            f"{file} cannot be read as JSON: {error}",
            value=str(file),
            cure="Begin with what `holdfast trust policy show NAME` prints.",
        ) from error
