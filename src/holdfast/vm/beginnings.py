"""Who has a say before a machine begins, whoever asked for that: a start, a restart, saved memory."""

from collections.abc import Awaitable, Callable

MayBegin = Callable[[str, str], Awaitable[None]]
"""Given the VM's id and name; raises a HoldfastError where it must not start."""


class Beginnings:
    """Higher rooms join in; owners ask them, while the VM is still what it was."""

    def __init__(self) -> None:
        self._asked: list[MayBegin] = []

    def ask(self, asked: MayBegin) -> None:
        self._asked.append(asked)

    async def require(self, vm_id: str, name: str) -> None:
        """Raises what one of them refuses by."""
        for asked in self._asked:
            await asked(vm_id, name)
