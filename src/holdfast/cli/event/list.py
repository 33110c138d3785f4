"""`holdfast event list`."""

from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast event list --follow --format json"


def print_events(subject: str | None, limit: int, follow: bool, format_: Format) -> None:
    """Recent events, then, where asked for, each new one; JSON is one event a line."""
    import json
    import sys

    from holdfast.cli.output import escape
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment, pairs

    def put(event: dict[str, Any]) -> None:
        if format_ is Format.JSON:
            line = json.dumps(event)
        else:
            parts = (moment(event["time"]), event["kind"], event["subject"], pairs(event["data"]))
            line = "  ".join(escape(part) for part in parts if part)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with connect() as client:
        after = 0
        for event in client.wire("GET", "/v1/events/recent", query={"limit": limit, "subject": subject}):
            put(event)
            after = event["id"]
        if follow:
            for new in client.events(after=after or None, subject=subject):
                if new is not None:
                    put(new.model_dump(mode="json"))


def command(
    limit: Annotated[int, typer.Option(help="How many of the newest.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What happened on this host, oldest first."""
    print_events(None, limit, follow, format_)
