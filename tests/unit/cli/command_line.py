"""The command line against a daemon with fakes behind its doors: `main` as the program calls it.

`run` calls it in the tests' own process, where every module is loaded already. `RUN` starts a process, for
tests of signals, terminals and what a process alone can show.
"""

import io
import os
import subprocess
import sys
from typing import Any
from unittest.mock import patch

from holdfast.cli.main import main

RUN = [sys.executable, "-c", "from holdfast.cli.main import main; main()"]


def env(daemon: Any) -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if key != "HOLDFAST_URL"}
    return {**others, "HOLDFAST_SOCKET": str(daemon.socket), "COLUMNS": "120"}


def run(daemon: Any, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    """`typed` is its standard input."""
    argv = ["holdfast", *arguments]
    given, out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(3))
    given.write(typed)
    given.seek(0)
    code: Any = 0
    with (
        patch.dict(os.environ, env(daemon), clear=True),
        patch.multiple(sys, argv=argv, stdin=given, stdout=out, stderr=err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    said, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(argv, code, said, told)
