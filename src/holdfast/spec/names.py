"""Names that people give to VMs, switches, images and tokens.

A name becomes a folder's name, a log's name and (made simpler) a DNS name, so it is ASCII letters,
digits, space, dot, dash and underscore, begins with a letter or digit, does not end in a dot or
space, and has at most 63 characters. Two names that differ only in case are the same name.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

from holdfast.spec.errors import InvalidInput

MAX_NAME = 63
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,61}[A-Za-z0-9_-])?", re.ASCII)


class BadName(InvalidInput):
    id = "bad-name"


def check_name(name: str) -> str:
    """Return `name` itself, or raise `BadName` with the rule that it breaks."""
    if len(name) > MAX_NAME:
        raise BadName(
            f"the name {name[:20]!r}... has {len(name)} characters; at most {MAX_NAME} are allowed",
            value=name[:200],
            cure="Choose a shorter name.",
        )
    if ".." in name or not _NAME.fullmatch(name):
        raise BadName(
            f"{name!r} is not a usable name",
            value=name,
            cure="Use ASCII letters, digits, space, '.', '-' and '_'; begin with a letter or a digit, "
            "do not end with a dot or a space.",
        )
    return name


def host_name(name: str) -> str:
    """The DNS label made of a VM's name (RFC 1123): lower case, anything else becomes a dash."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    return label or "vm"


def _valid(name: str) -> str:
    try:
        return check_name(name)
    except BadName as error:
        raise ValueError(f"{error.message}. {error.cure}") from error


Name = Annotated[str, AfterValidator(_valid)]
