"""Options that `replica enable` and `replica extend` share: how something is sent."""

from typing import Annotated

import typer

POINTS = "all:10m,1m:1h,1h:1d,1d:30d"
"""The plan by which points are kept where none is said."""

PriorityOption = Annotated[str, typer.Option(help="high, normal or low.")]
LimitOption = Annotated[
    str, typer.Option(help="What may be sent, also by time: 1Gbit/s,mon-fri 08:00-18:00=50Mbit/s")
]
ExcludeOption = Annotated[list[str] | None, typer.Option(help="A disk that is not sent; may repeat.")]
ScheduleOption = Annotated[str, typer.Option(help="When it is sent: always, or 22:00-06:00,sat 00:00-24:00")]
InitialOption = Annotated[str, typer.Option(help="When the initial copy begins: now, or 'at 22:00'.")]
