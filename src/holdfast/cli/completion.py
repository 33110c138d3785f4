"""`holdfast completion`: the script that a shell reads to complete commands and names."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

EXAMPLE = 'eval "$(holdfast completion bash)"'


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def command(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print the completion script of a shell."""
    environment = {**os.environ, "_HOLDFAST_COMPLETE": f"source_{shell.value}"}
    os.execve(sys.argv[0], sys.argv[:1], environment)  # noqa: S606
