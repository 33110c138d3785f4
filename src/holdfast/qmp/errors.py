"""What can go wrong on a QMP monitor (QEMU, docs/interop/qmp-spec.rst)."""

from holdfast.spec.errors import Failed, TimedOut


class QmpRefused(Failed):
    """QEMU answered with an error; `detail` holds its class and its description."""

    id = "qmp-refused"


class QmpLost(Failed):
    id = "qmp-lost"


class QmpTimedOut(TimedOut):
    id = "qmp-timed-out"
