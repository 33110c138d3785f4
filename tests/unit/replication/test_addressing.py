"""Addresses are set through the agent of a guest that has yet to start, and what came of it is told."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.replication.addressing import Addressing
from holdfast.replication.attachments import SentVm
from holdfast.spec.failover import FailoverNetwork, parse_failover_address
from holdfast.spec.vm import Nic, VmSpec
from holdfast.spec.vm_requests import ExecRequest, ExecResult
from holdfast.vm.guest import AgentNotThere

SPEC = VmSpec(cpus=1, memory=1 << 30, nics=(Nic(id="nic0", mac="52:54:00:00:00:01"),))
SENT = SentVm(
    id="0190aaaa-0000-7000-8000-000000000001",
    name="web",
    spec=SPEC,
    failover=FailoverNetwork(addresses=(parse_failover_address("nic0=192.0.2.10/24"),)),
)


class Guest:
    """Its agent answers when it has been asked for often enough."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    async def agent(self) -> None:
        await asyncio.sleep(0)
        if self.left:
            self.left -= 1
            raise AgentNotThere("it has not answered")

    async def execute(self, _: ExecRequest) -> ExecResult:
        return ExecResult(exit_code=0, stdout="holdfast-set networkd eth0", stderr="")


def of(guest: Guest | None) -> Addressing:
    async def find(_: str) -> Any:
        return SimpleNamespace(guest=guest, record=SimpleNamespace(spec=SPEC))

    return Addressing(find)


async def test_a_guest_is_waited_for_until_its_agent_answers() -> None:
    (found,) = await of(Guest(3)).set(SENT.id, SENT)
    assert (found.done, found.addresses) == (True, ("192.0.2.10/24",))


async def test_one_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.replication.addressing.AGENT_SECONDS", 0.05)
    for guest in (None, Guest(10**9)):
        (found,) = await of(guest).set(SENT.id, SENT)
        assert (found.done, found.why) == (False, "the guest's agent did not answer")
