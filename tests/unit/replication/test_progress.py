"""What is told of a cycle under way, of tries that failed, and of the next one."""

import pytest

from holdfast.replication.moving import EACH_SECONDS, Meter, Moving, Phase
from holdfast.replication.progress import Fault, Progress
from holdfast.replication.shipping import Shipped
from holdfast.spec.errors import RemoteError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_meter_tells_now_and_then_and_the_newest() -> None:
    clock, told = Clock(), list[Moving]()
    meter = Meter(told.append, clock)
    meter.begin(Phase.COMPARING, 1000)
    for _ in range(10):
        meter.more(10, 0)
    assert told == []
    clock.now += EACH_SECONDS
    meter.more(10, 5)
    meter.more(10, 6)
    assert told == [Moving(phase=Phase.COMPARING, done=110, total=1000, sent=5)]
    meter.begin(Phase.COPYING, 50)
    clock.now += EACH_SECONDS
    meter.at(7, 9)
    assert told[1:] == [Moving(phase=Phase.COPYING, done=7, total=50, sent=9)]


def test_the_rate_is_of_the_phase_under_way_and_of_late() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.begins()
    assert progress.rate() is None
    for second in range(30):
        clock.now = 200.0 + second
        done = second * 10 if second < 15 else 150 + (second - 15) * 100
        progress.moved(Moving(phase=Phase.COPYING, done=done, total=10_000, sent=0))
    assert progress.rate() == pytest.approx(100.0)
    progress.moved(Moving(phase=Phase.CHANGES, done=0, total=0, sent=0))
    assert progress.rate() is None


def test_failures_are_counted_until_one_goes_well() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    fault = Fault.of(OSError(28, "No space left on device"))
    progress.begins()
    clock.now += 2
    assert progress.failed(fault) is True
    progress.waits(3.0)
    assert (progress.next_at, progress.tries[-1].seconds, progress.error) == (105.0, 2.0, fault.message)
    progress.begins()
    clock.now += 5
    assert progress.failed(fault) is False
    assert (progress.attempts, progress.failing_since, progress.next_at) == (2, 102.0, None)
    progress.arrived(Shipped(written=5, zeroed=3, sent=2, seconds=1.0, points=7))
    assert progress.went_well() == 5.0
    assert (progress.attempts, progress.error, progress.points) == (0, "", 7)
    assert [each.changed for each in progress.tries] == [0, 0, 8]
    assert progress.went_well() is None


def test_of_a_refusal_the_receivers_own_id_is_told() -> None:
    wire = {"id": "replica-peer-refused", "message": "the other host refused: full", "value": "no-space"}
    assert Fault.of(RemoteError(wire)) == Fault("no-space", wire["message"], "", refused=True)
    lost = RemoteError({"id": "replica-link-lost", "message": "gone", "value": "gone", "cure": "Look."})
    assert Fault.of(lost) == Fault("replica-link-lost", "gone", "Look.")
