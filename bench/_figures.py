"""How every benchmark reports: a table for people, or one JSON object."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Figure:
    name: str
    value: float | None
    """None: it could not be measured here; the note says why."""
    unit: str
    aim: float | None
    better: Literal["lower", "higher"]
    runs: int
    note: str = ""


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return made


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return f"{model}, {os.cpu_count()} CPUs, {memory} GiB, Linux {platform.release()}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not pass; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def spread(values: Sequence[float]) -> str:
    return f"median {statistics.median(values):.4g}, {min(values):.4g} to {max(values):.4g}"


def report(bench: str, figures: Sequence[Figure], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"bench": bench, "machine": machine(), "figures": [asdict(f) for f in figures]}))
        return
    print(f"{bench}: {machine()}")
    for figure in figures:
        value = "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
        sign = "<=" if figure.better == "lower" else ">="
        aim = f"aim {sign} {figure.aim:g}" if figure.aim is not None else ""
        print(f"  {figure.name:24} {value:>18}   {aim:14} {figure.runs} runs  {figure.note}")
