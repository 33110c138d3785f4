"""Replicas for people: the table of a status, how far a cycle is, history as charts. Pure."""

import math
from collections.abc import Sequence
from typing import Any

from holdfast.cli.output import columns_of, escape
from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import duration, moment
from holdfast.spec.units import format_size

Wire = dict[str, Any]

COLUMNS = (
    *("vm", "peer", "state", "health", "rpo", "p50", "p99", "target", "lag", "lag time"),
    *("rate", "next", "catch up", "points"),
)
PLAN_COLUMNS = (
    *("vm", "peer", "measured", "churn", "peak", "on the link", "rpo", "needs, 99 %", "needs, always"),
    *("given", "rpo p50", "p99", "worst"),
)
_BLOCKS = " ▁▂▃▄▅▆▇█"
_PLAIN = " ...:::##"
_HEIGHT = 5
"""Lines of one chart."""
_TITLE = 13


def status_lines(items: Sequence[Wire]) -> list[str]:
    """A table of all, how far long cycles are, and what is not as it should be."""
    lines = list(columns_of(COLUMNS, ([_cell(each, column) for column in COLUMNS] for each in items)))
    lines += [f"{escape(each['vm'])}: {progress(each['progress'])}" for each in items if each["progress"]]
    lines += [escape(f"{each['vm']}: {finding}") for each in items for finding in each["findings"]]
    return lines


def status_row(item: Wire) -> list[str]:
    """The cells of one line, as `COLUMNS` names them."""
    return [_cell(item, column) for column in COLUMNS]


def _cell(item: Wire, column: str) -> str:
    seconds = {
        "rpo": "rpo_seconds",
        "p50": "rpo_p50_seconds",
        "p99": "rpo_p99_seconds",
        "target": "target_seconds",
        "lag time": "lag_seconds",
        "next": "next_cycle_seconds",
        "catch up": "catch_up_seconds",
    }
    if column == "catch up" and not item["lag_bytes"]:
        return "-"
    if column in seconds:
        return duration(item[seconds[column]]) or ("never" if column == "catch up" else "-")
    if column == "lag":
        return format_size(item["lag_bytes"])
    if column == "rate":
        return f"{format_size(round(item['throughput']))}/s"
    if column == "vm" and item.get("sent_on"):
        return f"{item['vm']} (sent on)"
    return str(item[column])


def progress(moving: Wire) -> str:
    """`copying 1.2 GiB of 8 GiB (15 %), 110 MiB/s, 1 min 3 s left`."""
    done, total = moving["done_bytes"], moving["total_bytes"]
    percent = f" ({done / total:.0%})" if total else ""
    words = [f"{moving['phase']} {format_size(done)} of {format_size(total)}{percent}"]
    if moving["rate"] is not None:
        words.append(f"{format_size(round(moving['rate']))}/s")
    if moving["seconds_left"] is not None:
        words.append(f"{duration(moving['seconds_left'])} left")
    return ", ".join(words)


def explanation_text(found: Wire) -> str:
    """What is wrong, since when, where, what was tried, what to do; then figures and the last cycles."""
    sheet = Sheet()
    what = "replica held for" if found["held"] else "replicated to"
    sheet.line("VM", f"{found['vm']}, {what} {found['peer'] or 'nobody that is paired'}")
    sheet.line("state", f"{found['state']}, {found['health']}")
    sheet.line("in short", found["summary"])
    sheet.line_if("tried", found["tried"])
    for number, cause in enumerate(found["causes"], 1):
        since = moment(cause["since"])
        lines = [
            cause["cause"],
            f"where: {cause['side']}; {cause['severity']}" + (f"; since {since}" if since else ""),
            f"do:    {cause['cure']}",
        ]
        if cause["error"]:
            lines.append(f"error: {cause['error']} ({cause['error_id']})")
        sheet.list(f"cause {number}", lines)
    figures = [(key.replace("_", " "), _figure(key, value)) for key, value in found["figures"].items()]
    sheet.rows("figures", ("what", "value"), figures)
    cycles = [
        (
            moment(each["ended"]),
            duration(each["seconds"]),
            format_size(each["changed_bytes"]),
            format_size(each["sent_bytes"]),
            each["error_id"] or "arrived",
        )
        for each in found["evidence"]
    ]
    sheet.rows("last cycles", ("ended", "took", "changed", "on the link", "result"), cycles)
    return sheet.text()


def _figure(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.endswith("_seconds") or key == "average_latency":
        return duration(value) or "-"
    if key in ("churn", "throughput", "wire_rate"):
        return f"{format_size(round(value))}/s"
    if key.endswith("_bytes") or key in ("used", "allowed", "used_of_source"):
        return format_size(round(value))
    return f"{value:.1%}" if key.endswith("_ratio") else str(value)


def plan_row(plan: Wire) -> list[str]:
    """The cells of one line, as `PLAN_COLUMNS` names them."""
    times = ("expected_p50_seconds", "expected_p99_seconds", "expected_worst_seconds")
    return [
        plan["vm"] or "(together)",
        plan["peer"] or "-",
        duration(plan["measured_seconds"]) or "-",
        *(_bits(plan[key]) for key in ("churn", "churn_peak")),
        f"{plan['wire_ratio']:.0%}",
        duration(plan["rpo_seconds"]) or "-",
        *(_bits(plan[key]) for key in ("bandwidth_p99", "bandwidth_always", "bandwidth")),
        *(duration(plan[key]) or "-" for key in times),
    ]


def _bits(rate: float | None) -> str:
    """Of bytes a second, as links are sold."""
    if rate is None:
        return "-"
    bits = 8 * rate
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Gbit/s"


def history_text(history: Wire, width: int, *, blocks: bool) -> str:
    """Totals and a chart of each figure. `width`: columns of the terminal. `blocks`: it shows those."""
    total = history["total"]
    lines = [
        f"{escape(history['vm'])} to {escape(history['peer'])}",
        f"cycles       {total['cycles']} arrived, {total['missed']} missed their target, "
        f"{total['errors']} failed",
        f"size         {format_size(round(total['average_bytes']))} on average, "
        f"{format_size(total['largest_bytes'])} at most, {format_size(total['changed_bytes'])} in all",
        f"latency      {duration(total['average_latency'])} on average",
        f"RPO          {duration(total['rpo_p50_seconds']) or '-'} median, "
        f"{duration(total['rpo_p99_seconds']) or '-'} 99th percentile",
        f"pending      {format_size(total['pending_bytes'])} at most",
        f"last sync    {moment(history['last_sync']) or '-'}",
        f"last test    {moment(history['last_test']) or '-'}",
    ]
    intervals = history["intervals"]
    if intervals:
        room = max(10, width - _TITLE - 1)
        slots = _slots(intervals, room)
        lines += ["", *_chart("RPO p99", [_most(each, "rpo_p99_seconds") for each in slots], _short, blocks)]
        lines += _chart("bytes a cycle", [_most(each, "average_bytes") for each in slots], _size, blocks)
        lines += _chart("failed", [_most(each, "errors") for each in slots], _count, blocks)
        lines.append(_ends(intervals, len(slots)))
    return "\n".join(lines) + "\n"


def _slots(intervals: Sequence[Wire], room: int) -> list[list[Wire]]:
    """Intervals by the column that they are shown in, all columns as long; empty: nothing is known."""
    from datetime import datetime

    begins = [datetime.fromisoformat(each["begin"]).timestamp() for each in intervals]
    span = intervals[0]["seconds"]
    each = max(span, math.ceil((begins[-1] + span - begins[0]) / room / span) * span)
    slots: list[list[Wire]] = [[] for _ in range(int((begins[-1] - begins[0]) // each) + 1)]
    for begin, interval in zip(begins, intervals, strict=True):
        slots[int((begin - begins[0]) // each)].append(interval)
    return slots


def _most(slot: list[Wire], key: str) -> float | None:
    return max((each[key] for each in slot if each[key] is not None), default=None)


def _chart(title: str, values: list[float | None], words: Any, blocks: bool) -> list[str]:
    """Bars from zero to the largest value, which is written beside the top."""
    levels = _BLOCKS if blocks else _PLAIN
    top = max((each for each in values if each is not None), default=0.0)
    if top <= 0:
        return [f"{title:<{_TITLE}}none"]
    steps = len(levels) - 1
    lines = []
    for line in range(_HEIGHT - 1, -1, -1):
        label = title if line == _HEIGHT - 1 else words(top) if line == _HEIGHT - 2 else ""
        bars = ""
        for value in values:
            filled = 0 if value is None else math.ceil(value / top * _HEIGHT * steps) - line * steps
            bars += levels[max(0, min(steps, filled))]
        lines.append(f"{label:<{_TITLE}}{bars}".rstrip())
    return lines


def _ends(intervals: Sequence[Wire], width: int) -> str:
    first, last = (moment(intervals[index]["begin"]) or "" for index in (0, -1))
    return " " * _TITLE + (f"{first}{last:>{width - len(first)}}" if width > 2 * len(first) else first)


def _short(seconds: float) -> str:
    return (duration(seconds) or "")[: _TITLE - 1]


def _size(count: float) -> str:
    return format_size(round(count))


def _count(count: float) -> str:
    return str(round(count))
