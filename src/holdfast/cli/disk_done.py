"""How the end of long work on a disk is told."""

from typing import Any

from holdfast.cli.output import Format, say
from holdfast.cli.sheets.disk import done
from holdfast.cli.waiting import finish


def finish_disk(client: Any, wire: dict[str, Any], format_: Format, no_wait: bool) -> None:
    """Follow the operation to its end, and say for people what came of it."""
    operation = finish(client, wire, format_, no_wait)
    if format_ is Format.TABLE and operation.get("result"):
        for line in done(operation["kind"], operation["result"]):
            say(line)
