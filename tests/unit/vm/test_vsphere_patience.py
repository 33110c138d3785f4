"""Phases that speak to vSphere: what passes is waited for, the rest is told at once."""

from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.spec.errors import HoldfastError
from holdfast.storage.vsphere.refusals import BUSY, VsphereRefused, VsphereUnreachable
from holdfast.storage.vsphere.transfer import Patience
from holdfast.vm.vsphere_work import CopyOff

AWAY = VsphereUnreachable("it does not answer")
DOES_SOMETHING = VsphereRefused("the server refused", value=BUSY)
NO = VsphereRefused("the server refused", value="NoPermission")


class Phase(CopyOff):
    def __init__(self, *failures: BaseException) -> None:
        source: Any = SimpleNamespace(rooms=None, find=None, patience=Patience(pauses=(0, 0)))
        super().__init__(source)
        self.failures = list(failures)

    async def _do(self, job: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)


async def test_a_server_that_is_away_or_busy_for_a_while_is_asked_again() -> None:
    await Phase(AWAY, ExceptionGroup("disks", [DOES_SOMETHING, AWAY])).do(SimpleNamespace(id="x"))


@pytest.mark.parametrize("failures", [(NO,), (AWAY, AWAY, AWAY), (ExceptionGroup("disks", [AWAY, NO]),)])
async def test_what_does_not_pass_fails(failures: tuple[Exception, ...]) -> None:
    with pytest.raises((HoldfastError, ExceptionGroup)):
        await Phase(*failures).do(SimpleNamespace(id="x"))
