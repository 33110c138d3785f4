"""The command line as a process of its own, against a daemon with fakes behind its doors."""

import os
import subprocess
import sys
from typing import Any

RUN = [sys.executable, "-c", "from holdfast.cli.main import main; main()"]


def env(daemon: Any) -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if key != "HOLDFAST_URL"}
    return {**others, "HOLDFAST_SOCKET": str(daemon.socket), "COLUMNS": "120"}


def run(daemon: Any, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    """`typed` is its standard input."""
    return subprocess.run(
        [*RUN, *arguments],
        env=env(daemon),
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
