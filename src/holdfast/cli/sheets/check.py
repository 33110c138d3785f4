"""`host check`: a line for each part of the host, what was found beside it, and the cure beneath."""

import textwrap
from typing import Any

from holdfast.cli.output import escape

_GAP = "  "
_NARROWEST = 30


def check_sheet(lines: list[dict[str, Any]], width: int) -> str:
    """Check lines in wire form, the text folded so that no line is wider than `width` columns."""
    status = max((len(line["status"]) for line in lines), default=0)
    title = max((len(line["title"]) for line in lines), default=0)
    margin = " " * (status + title + 2 * len(_GAP))
    room = max(width - len(margin), _NARROWEST)
    shown: list[str] = []
    for line in lines:
        head = f"{line['status']:<{status}}{_GAP}{escape(line['title']):<{title}}{_GAP}"
        folded = _fold(line["text"], room)
        if line["cure"]:
            folded += _fold(f"-> {line['cure']}", room)
        shown += [(margin if index else head) + text for index, text in enumerate(folded or [""])]
    return "".join(f"{line.rstrip()}\n" for line in shown)


def _fold(text: str, room: int) -> list[str]:
    return textwrap.wrap(escape(text), room, break_long_words=False, break_on_hyphens=False)
