"""The tables. Stored types are their own, apart from the models that run (the `records` modules of rooms).

A change here comes with a migration in `migrations/versions/` (docs/recipes/add-a-persisted-field.md).
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAME = String(63, collation="NOCASE")


class Table(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, datetime: DateTime}


class VmRow(Table):
    __tablename__ = "vms"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    number: Mapped[int] = mapped_column(Integer, unique=True)
    """Small and unique: the VM's processes run as the host's first VM uid plus this."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    cpus: Mapped[int] = mapped_column(Integer, index=True)
    memory: Mapped[int] = mapped_column(BigInteger, index=True)
    created: Mapped[datetime] = mapped_column(index=True)
    spec: Mapped[dict[str, Any]]
    running_spec: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """What the machine was built from, while there is one (running, paused, saved)."""
    machine_type: Mapped[str | None] = mapped_column(String(64), default=None)
    acceleration: Mapped[str | None] = mapped_column(String(8), default=None)
    addresses: Mapped[list[str]] = mapped_column(default=list)
    guest: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    started: Mapped[datetime | None] = mapped_column(default=None)
    boot_seconds: Mapped[float | None] = mapped_column(Float, default=None)
    failure: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    operation: Mapped[str | None] = mapped_column(String(36), default=None)


class ImageRow(Table):
    __tablename__ = "images"

    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    origin: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(1024))
    virtual_size: Mapped[int] = mapped_column(BigInteger)
    stored_size: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[datetime]


class ImageNameRow(Table):
    __tablename__ = "image_names"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("images.digest"), index=True)


class SwitchRow(Table):
    __tablename__ = "switches"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    spec: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class PoolRow(Table):
    __tablename__ = "pools"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    """What the storage itself is marked with."""
    kind: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class TokenRow(Table):
    __tablename__ = "tokens"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    created: Mapped[datetime]
    expires: Mapped[datetime | None] = mapped_column(default=None)
    last_used: Mapped[datetime | None] = mapped_column(default=None)


class EventRow(Table):
    __tablename__ = "events"
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    time: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128), index=True)
    data: Mapped[dict[str, Any]]


class OperationRow(Table):
    __tablename__ = "operations"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(128), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    phase: Mapped[str] = mapped_column(String(128), default="")
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    text: Mapped[str] = mapped_column(String(256), default="")
    actor: Mapped[str] = mapped_column(String(128))
    params: Mapped[dict[str, Any]]
    notes: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    result: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    created: Mapped[datetime] = mapped_column(index=True)
    ended: Mapped[datetime | None] = mapped_column(default=None)


class AttestedHostRow(Table):
    """A host that attests to this one."""

    __tablename__ = "attested_hosts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    enrolled: Mapped[datetime] = mapped_column(index=True)
    record: Mapped[dict[str, Any]]


class TrustRow(Table):
    """What is known and wanted of a VM's trust; no row is the default of everything."""

    __tablename__ = "trust"

    vm: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    enrolment: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    policy: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    interval_seconds: Mapped[int | None] = mapped_column(Integer, default=None)


class VerdictRow(Table):
    __tablename__ = "verdicts"
    __table_args__ = {"sqlite_autoincrement": True}

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    vm: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    time: Mapped[datetime]
    verdict: Mapped[str] = mapped_column(String(8))
    body: Mapped[dict[str, Any]]


class CheckpointRow(Table):
    """A state that a VM can return to."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("vm", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    vm: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(_NAME)
    parent: Mapped[str | None] = mapped_column(String(36), default=None)
    type: Mapped[str] = mapped_column(String(16))
    notes: Mapped[str] = mapped_column(String(4096), default="")
    created: Mapped[datetime]
    spec: Mapped[dict[str, Any]]
    running_spec: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """What the memory fits; there is none without memory."""
    machine_type: Mapped[str | None] = mapped_column(String(64), default=None)
    acceleration: Mapped[str | None] = mapped_column(String(8), default=None)
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    stall_seconds: Mapped[float | None] = mapped_column(Float, default=None)
    scheduled: Mapped[bool] = mapped_column(Boolean, default=False)


class CheckpointTreeRow(Table):
    """Of a VM's checkpoints as a whole; no row: there was never one."""

    __tablename__ = "checkpoint_trees"

    vm: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    current: Mapped[str | None] = mapped_column(String(36), default=None)
    """Id of the checkpoint that what is now came from."""
    schedule: Mapped[dict[str, Any] | None] = mapped_column(default=None)


class ReplicaPeerRow(Table):
    """A host that this one replicates to or from."""

    __tablename__ = "replica_peers"
    __table_args__ = (UniqueConstraint("role", "fingerprint"),)

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    fingerprint: Mapped[str] = mapped_column(String(80))
    paired: Mapped[datetime]
    record: Mapped[dict[str, Any]]


class ReplicaTokenRow(Table):
    """That a host may pair with this one, once."""

    __tablename__ = "replica_tokens"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires: Mapped[datetime]
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Of the host that pairs by it."""


class SentRow(Table):
    """Something that is sent to a peer."""

    __abstract__ = True

    vm: Mapped[str] = mapped_column(String(36), primary_key=True)
    peer: Mapped[str] = mapped_column(_NAME, primary_key=True, index=True)
    record: Mapped[dict[str, Any]]


class ReplicationRow(SentRow):
    """A VM of this host that is replicated to a peer."""

    __tablename__ = "replications"

    vm: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)


class ReplicaExtensionRow(SentRow):
    """A replica that is held here and sent on to a peer; its VM may have come to run here."""

    __tablename__ = "replica_extensions"


class ReplicaRow(Table):
    """A VM of another host that is held here."""

    __tablename__ = "replicas"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    vm: Mapped[str] = mapped_column(String(36), unique=True)
    source: Mapped[str] = mapped_column(String(80), index=True)
    """Fingerprint of the host that sends it."""
    record: Mapped[dict[str, Any]]


class ReplicaTurnRow(Table):
    """Whose turn it is to run a VM that is, or was, replicated from or to this host."""

    __tablename__ = "replica_turns"

    vm: Mapped[str] = mapped_column(String(36), primary_key=True)
    record: Mapped[dict[str, Any]]


class FailoverTestRow(Table):
    """A test of a replica that this host holds, under way or ended."""

    __tablename__ = "failover_tests"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    replica: Mapped[str] = mapped_column(_NAME, index=True)
    started: Mapped[datetime]
    ended: Mapped[bool] = mapped_column(index=True)
    record: Mapped[dict[str, Any]]


class FailoverTestPlanRow(Table):
    """When a replica is tested by itself."""

    __tablename__ = "failover_test_plans"

    replica: Mapped[str] = mapped_column(_NAME, primary_key=True)
    record: Mapped[dict[str, Any]]


class FactRow(Table):
    """What was found out once and holds until its key changes (acceleration, capabilities)."""

    __tablename__ = "facts"

    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    value: Mapped[dict[str, Any]]
