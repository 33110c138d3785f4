"""Secrets from people: by a prompt, from standard input or from a file, never from arguments."""

import sys
from pathlib import Path

from holdfast.cli.uploading import NoSuchFile
from holdfast.spec.errors import InvalidInput

_LONGEST = 4096


class NoSecretGiven(InvalidInput):
    id = "no-secret-given"


class SecretsDiffer(InvalidInput):
    id = "secrets-differ"


def typed(what: str, twice: bool = False) -> str:
    """Asked for on a terminal, without showing it; else the first line of standard input.

    Raises:
        NoSecretGiven: it is empty.
        SecretsDiffer: asked for twice, it was typed in two ways.
    """
    import getpass

    if sys.stdin.isatty():
        secret = getpass.getpass(f"{what}: ")
        if twice and getpass.getpass(f"{what}, again: ") != secret:
            raise SecretsDiffer(f"the {what.lower()} was typed in two different ways", cure="Try again.")
    else:
        secret = sys.stdin.readline(_LONGEST).rstrip("\n")
    if not secret:
        raise NoSecretGiven(
            f"no {what.lower()} was given", cure="Type it at the prompt, or pipe it in on standard input."
        )
    return secret


def passphrase(file: Path | None, twice: bool = False) -> str:
    """As `given`."""
    return given(file, "Passphrase", twice)


def given(file: Path | None, what: str, twice: bool = False) -> str:
    """The first line of a file (`-`: standard input), or what is typed. Raises NoSuchFile and as `typed`."""
    if file is None or str(file) == "-":
        return typed(what, twice)
    try:
        with file.expanduser().open(encoding="utf-8") as stream:
            secret = stream.readline(_LONGEST).rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchFile(
            f"no {what.lower()} can be read from {str(file)!r}", value=str(file), cure="Check its path."
        ) from error
    if not secret:
        raise NoSecretGiven(
            f"the first line of {str(file)!r} is empty",
            value=str(file),
            cure=f"Write the {what.lower()} into its first line.",
        )
    return secret
