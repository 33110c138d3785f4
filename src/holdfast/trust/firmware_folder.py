"""A VM's folder `firmware`, replaced as a whole: all of the new one or all of the old one, whatever happens.

    firmware           what counts
    firmware.new       being written; means nothing while `firmware` is there
    firmware.before    was replaced; means nothing once `firmware` is there

`firmware` is renamed away only when `firmware.new` is whole and durable. So where it is missing, the new
one takes its place; where it is there, the other two are rests. Whoever reads the folder settles it first.
"""

from collections.abc import Callable
from pathlib import Path

from holdfast.host.files import remove_tree, sync_folder
from holdfast.trust.changing import changing

_NEW, _BEFORE = "firmware.new", "firmware.before"


def settle_folder(vm: Path) -> None:
    """Finish or undo a replacement that a crash interrupted. Safe to repeat; `vm` is the VM's folder."""
    with changing:
        _settle(vm)


def _settle(vm: Path) -> None:
    firmware, new, before = vm / "firmware", vm / _NEW, vm / _BEFORE
    if not firmware.exists():
        for whole in (new, before):
            if whole.exists():
                whole.rename(firmware)
                sync_folder(vm)
                break
    if firmware.exists():
        remove_tree(new)
        remove_tree(before)


def replace_folder(vm: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder and put it in the place of `firmware`.

    What `fill` writes must be durable when it returns, but for the names in the folder itself. Where it
    raises, everything is as it was.
    """
    with changing:  # no rotation writes into a folder that goes
        _replace(vm, fill)


def _replace(vm: Path, fill: Callable[[Path], None]) -> None:
    _settle(vm)
    firmware, new, before = vm / "firmware", vm / _NEW, vm / _BEFORE
    if not firmware.exists():  # else a half-filled new one would count after a crash
        firmware.mkdir(mode=0o711)
        sync_folder(vm)
    try:
        new.mkdir()
        new.chmod(0o711)  # the VM's user passes through
        fill(new)
        sync_folder(new)
        sync_folder(vm)
    except BaseException:
        remove_tree(new)
        raise
    firmware.rename(before)
    sync_folder(vm)
    new.rename(firmware)
    sync_folder(vm)
    remove_tree(before)
