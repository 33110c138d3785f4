"""`holdfast replica test`."""

from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait
from holdfast.spec.errors import Failed, InvalidInput

EXAMPLE = "holdfast replica test web --check 'systemctl is-active nginx' --wait 2m"


class FailoverTestFailed(Failed):
    id = "failover-test-failed"


class BadTestOptions(InvalidInput):
    id = "bad-test-options"


def command(
    name: Annotated[str, typer.Argument(help="The replica, as `holdfast replica list` names it.")],
    point: Annotated[
        str | None, typer.Option(help="Number of a point, or a time: the newest point until then.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="Command for the guest's shell; exit code 0 passes the test.")
    ] = None,
    wait: Annotated[
        str, typer.Option(help="How long the guest's agent, and then the command, is waited for.")
    ] = "5m",
    for_: Annotated[str | None, typer.Option("--for", help="Clean up after so long, like 30m.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not clean up after the check.")] = False,
    end: Annotated[bool, typer.Option("--end", help="End the test that is under way.")] = False,
    schedule: Annotated[
        str | None,
        typer.Option(help="Test by itself: `daily 03:00`, `sun 04:00`, `every 12h`; `none`: not any more."),
    ] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Run a replica's VM in isolation, while replication goes on, and check that it works.

    The VM is called "NAME - Test", and its NICs are in no network. With --check it is cleaned up at once;
    without, it runs until --end, or as long as --for says.
    """
    from urllib.parse import quote

    from holdfast.cli.replica.durations import seconds
    from holdfast.cli.session import connect

    path = f"/v1/replica/held/{quote(name, safe='')}"
    checked = {"command": check, "wait_seconds": seconds(wait)}
    if end + (schedule is not None) + (point is not None or for_ is not None or keep) > 1:
        raise BadTestOptions(
            "that is more than one thing to do", cure="Use --end or --schedule without the other options."
        )
    with connect() as client:
        if end:
            _told(client.wire("DELETE", f"{path}/test"), format_)
            return
        if schedule is not None:
            _plan(client, f"{path}/test-schedule", schedule, checked, format_)
            return
        asked = {
            **checked,
            **_chosen(point),
            "for_seconds": None if for_ is None else round(seconds(for_)),
            "keep": keep,
        }
        test = client.wire("POST", f"{path}/test", asked)
        if not no_wait:
            test = _followed(client, test)
    _told(test, format_)
    if test["verdict"] == "failed":
        raise _failed(test)


def _chosen(point: str | None) -> dict[str, Any]:
    from datetime import datetime

    if point is None:
        return {}
    if point.isascii() and point.isdigit():
        return {"point": int(point)}
    try:
        return {"at": datetime.fromisoformat(point).astimezone().isoformat()}
    except ValueError:
        raise BadTestOptions(
            f"{point[:40]!r} is neither the number of a point nor a time",
            value=point[:100],
            cure="Write for example 1234, or '2026-03-01 14:30'; see `holdfast replica points`.",
        ) from None


def _plan(client: Any, path: str, schedule: str, check: dict[str, Any], format_: Format) -> None:
    from holdfast.cli.output import print_json, say

    if schedule.strip() in ("none", "off"):
        client.wire("DELETE", path)
        made = None
    else:
        made = client.wire("PUT", path, {"schedule": schedule, "check": check})
    if format_ is Format.JSON:
        print_json(made)
    else:
        say("it is tested by itself no more" if made is None else f"it is tested {made['schedule']}")


def _followed(client: Any, test: dict[str, Any]) -> dict[str, Any]:
    """The test once its VM runs for good or is gone; says on the way how far it is."""
    from holdfast.cli.output import say

    phase = ""
    for _ in client.events(subject=test["replica"]):
        test = client.wire("GET", f"/v1/replica/tests/{test['id']}")
        if test["phase"] != phase:
            phase = test["phase"]
            say(f"point {test['point']}: {_WORDS[phase]}")
        if phase in ("running", "ended"):
            break
    return test


_WORDS = {
    "starting": "the VM is made and started",
    "checking": "waiting for the guest",
    "running": "the VM runs",
    "ending": "cleaning up",
    "ended": "cleaned up",
}


def _failed(test: dict[str, Any]) -> FailoverTestFailed:
    return FailoverTestFailed(
        f"the test of {test['replica']!r} failed: {test['error']}",
        value=test["id"],
        cure="See it with `holdfast replica tests`; keep the VM for a look with --keep.",
    )


def _told(test: dict[str, Any], format_: Format) -> None:
    from holdfast.cli.output import print_json, say
    from holdfast.cli.sheets.words import duration

    if format_ is Format.JSON:
        print_json(test)
        return
    for each in test["findings"]:
        say(f"note: {each['text']}")
    if test["ready_seconds"] is not None:
        say(f"the guest answered after {duration(test['ready_seconds'])}")
    if test["output"]:
        say(test["output"].rstrip())
    if test["verdict"] == "passed":
        say(f"the test of {test['replica']!r} passed")
    if test["phase"] == "running":
        say(f"VM {test['vm']!r} runs; end it with: holdfast replica test {test['replica']!r} --end")
