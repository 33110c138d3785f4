"""Arguments that name things, completed from the daemon."""

from typing import Annotated

import typer


def _complete(path: str, incomplete: str) -> list[str]:
    from holdfast.cli.session import connect
    from holdfast.spec.errors import HoldfastError

    try:
        with connect() as client:
            page = client.wire("GET", path, query={"limit": 100, "filter": incomplete or None})
    except HoldfastError:
        return []
    names = [name for item in page["items"] for name in item.get("names", [item.get("name")])]
    return [name for name in names if name.startswith(incomplete)]


def complete_vm(incomplete: str) -> list[str]:
    return _complete("/v1/vms", incomplete)


def complete_image(incomplete: str) -> list[str]:
    return _complete("/v1/images", incomplete)


def complete_switch(incomplete: str) -> list[str]:
    return _complete("/v1/switches", incomplete)


def complete_pool(incomplete: str) -> list[str]:
    return _complete("/v1/pools", incomplete)


VmArgument = Annotated[str, typer.Argument(metavar="NAME", help="The VM.", autocompletion=complete_vm)]
ImageArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The image.", autocompletion=complete_image)
]
SwitchArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The switch.", autocompletion=complete_switch)
]
PoolArgument = Annotated[str, typer.Argument(metavar="NAME", help="The pool.", autocompletion=complete_pool)]
VmsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="VMs.", autocompletion=complete_vm)
]
DiskArgument = Annotated[str, typer.Argument(metavar="DISK", help="Its id, such as disk1.")]
