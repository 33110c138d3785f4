"""Explanations of one name: of the VM that this host sends, and of the replica that it holds."""

import contextlib

from holdfast.replication.explaining import explain_held
from holdfast.replication.listening import ReplicaListener
from holdfast.replication.replica_records import NoSuchReplica
from holdfast.replication.replication_records import NotReplicated
from holdfast.replication.service import Replications
from holdfast.spec.replica_figures import ReplicaExplanation
from holdfast.vm.records import VmNotFound


class Explanations:
    def __init__(self, sent: Replications, held: ReplicaListener) -> None:
        self._sent = sent
        self._held = held

    async def explain(self, name: str) -> tuple[ReplicaExplanation, ...]:
        """All that there is of the name. Raises VmNotFound, NotReplicated."""
        held: tuple[ReplicaExplanation, ...] = ()
        with contextlib.suppress(NoSuchReplica):
            held = (explain_held(*await self._held.look(name)),)
        try:
            return (*await self._sent.explain(name), *held)
        except (VmNotFound, NotReplicated):
            if held:
                return held
            raise
