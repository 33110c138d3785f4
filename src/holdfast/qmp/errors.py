"""What can go wrong on a QMP monitor (QEMU, docs/interop/qmp-spec.rst) and with a guest's agent."""

from holdfast.spec.errors import Failed, TimedOut


class QmpRefused(Failed):
    """QEMU answered with an error; `detail` holds its class and its description."""

    id = "qmp-refused"


class QmpLost(Failed):
    id = "qmp-lost"


class QmpTimedOut(TimedOut):
    id = "qmp-timed-out"


class AgentFailed(Failed):
    """The guest's agent did not do what it was asked; the subclasses say why."""

    id = "agent-failed"


class AgentRefused(AgentFailed):
    """The agent answered with an error; `detail` holds its class and what it said."""

    id = "agent-refused"


class AgentNonsense(AgentFailed):
    """What came was no answer at all."""

    id = "agent-nonsense"


class AgentLost(AgentFailed):
    """The agent's channel is not there, or closed before the answer."""

    id = "agent-lost"


class AgentTimedOut(TimedOut):
    id = "agent-timed-out"
