"""Limits and priorities, by a simulated clock."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.replication.pace import BadLimit, Bucket, Flow, Limit, Pace, Priority, parse_limit

MB = 1_000_000
PIECE = 64 * 1024
MONDAY = datetime(2026, 3, 2, 12)


def flow_of(
    priority: Priority = Priority.NORMAL,
    host: Bucket | None = None,
    peer: Bucket | None = None,
    vm: float | None = None,
) -> Flow:
    return Flow(priority, host or Bucket(Limit()), peer or Bucket(Limit()), Bucket(Limit(vm)))


class Simulation:
    """Flows that always want to send, unless told otherwise."""

    def __init__(self, wall: datetime = MONDAY) -> None:
        self.pace, self.at, self._wall = Pace(), 0.0, wall
        self.sent: dict[Flow, int] = {}
        self._asked: set[Flow] = set()

    def run(self, flows: list[Flow], seconds: float) -> None:
        end = self.at + seconds
        for flow in flows:
            if flow not in self._asked:
                self._ask(flow)
        while self.at < end:
            turn = self.pace.turn(self.at, self._wall + timedelta(seconds=self.at))
            assert turn is not None
            if isinstance(turn, float):
                self.at += turn
                continue
            flow, size = turn
            self.sent[flow] = self.sent.get(flow, 0) + size
            self._asked.discard(flow)
            if flow in flows:
                self._ask(flow)

    def _ask(self, flow: Flow) -> None:
        self._asked.add(flow)
        self.pace.ask(flow, PIECE)


def test_a_limit_is_kept_over_time() -> None:
    flow, simulation = flow_of(vm=10 * MB), Simulation()
    simulation.run([flow], 20)
    assert simulation.sent[flow] == pytest.approx(200 * MB, rel=0.02)


def test_the_narrowest_of_all_limits_counts() -> None:
    host, peer = Bucket(Limit(30 * MB)), Bucket(Limit(20 * MB))
    flows = [flow_of(host=host, peer=peer, vm=rate) for rate in (2 * MB, None, None)]
    simulation = Simulation()
    simulation.run(flows, 20)
    first, second, third = (simulation.sent[each] / 20 / MB for each in flows)
    assert first == pytest.approx(2, rel=0.05)
    assert second == pytest.approx(9, rel=0.05) and third == pytest.approx(9, rel=0.05)


def test_under_contention_high_goes_first_and_low_still_moves() -> None:
    host = Bucket(Limit(21 * MB))
    high, normal, low = (flow_of(each, host) for each in Priority)
    simulation = Simulation()
    simulation.run([high, normal, low], 20)
    assert [round(simulation.sent[each] / 20 / MB) for each in (high, normal, low)] == [16, 4, 1]


def test_alone_low_gets_everything() -> None:
    host = Bucket(Limit(10 * MB))
    low, high = flow_of(Priority.LOW, host), flow_of(Priority.HIGH, host)
    simulation = Simulation()
    simulation.run([low], 10)
    assert simulation.sent[low] == pytest.approx(100 * MB, rel=0.05)
    # And who comes later does not make up for the time in which it wanted nothing.
    simulation.sent.clear()
    simulation.run([low, high], 10)
    assert simulation.sent[low] / simulation.sent[high] == pytest.approx(1 / 16, rel=0.1)


def test_what_a_limit_held_back_is_not_made_up_for() -> None:
    host = Bucket(Limit(20 * MB))
    held, other = flow_of(host=host, vm=1 * MB), flow_of(host=host)
    simulation = Simulation()
    simulation.run([held, other], 10)
    held.vm.limit = Limit()
    simulation.sent.clear()
    simulation.run([held, other], 2)
    assert simulation.sent[held] == pytest.approx(simulation.sent[other], rel=0.1)


def test_a_slow_peer_keeps_its_own_order() -> None:
    """One peer takes 1 MB/s, another all there is: priorities count among those of the slow one too."""
    host, slow = Bucket(Limit(40 * MB)), Bucket(Limit(1 * MB))
    high, low = flow_of(Priority.HIGH, host, slow), flow_of(Priority.LOW, host, slow)
    other = flow_of(Priority.NORMAL, host)
    simulation = Simulation()
    simulation.run([high, low, other], 40)
    assert simulation.sent[high] / simulation.sent[low] == pytest.approx(16, rel=0.2)
    assert simulation.sent[other] / 40 == pytest.approx(39 * MB, rel=0.05)


def test_a_flow_that_is_forgotten_gets_no_turn() -> None:
    pace, flow = Pace(), flow_of()
    pace.ask(flow, 1)
    pace.forget(flow)
    assert pace.turn(0, MONDAY) is None


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(list(Priority)), min_size=2, max_size=8))
def test_nobody_starves(priorities: list[Priority]) -> None:
    host = Bucket(Limit(20 * MB))
    flows = [flow_of(each, host) for each in priorities]
    simulation = Simulation()
    simulation.run(flows, 1)
    total = sum(simulation.sent.values())
    for flow in flows:
        assert simulation.sent[flow] >= total / (16 * len(flows)) / 2


def test_the_rate_changes_with_the_time_of_day() -> None:
    limit = parse_limit("none,mon-fri 08:00-18:00=80Mbit/s")
    flow = flow_of(host=Bucket(Limit(100 * MB)), peer=Bucket(limit))
    simulation = Simulation(datetime(2026, 3, 2, 17, 59, 50))
    simulation.run([flow], 10)
    assert simulation.sent[flow] == pytest.approx(100 * MB, rel=0.05)
    simulation.sent.clear()
    simulation.run([flow], 10)
    assert simulation.sent[flow] == pytest.approx(1000 * MB, rel=0.05)


@pytest.mark.parametrize(
    ("text", "when", "rate"),
    [
        ("200Mbit/s", "2026-03-02 12:00", 25 * MB),
        ("200 Mb/s", "2026-03-02 12:00", 25 * MB),
        ("1.5 MB/s", "2026-03-02 12:00", 1.5 * MB),
        ("10mbps", "2026-03-02 12:00", 1.25 * MB),
        ("none", "2026-03-02 12:00", None),
        ("8bit/s,22:00-06:00=none", "2026-03-02 23:00", None),
        ("8bit/s,22:00-06:00=none", "2026-03-02 05:59", None),
        ("8bit/s,22:00-06:00=none", "2026-03-02 06:00", 1),
        ("8bit/s,sun 22:00-06:00=none", "2026-03-02 05:59", None),  # Monday morning
        ("8bit/s,sun 22:00-06:00=none", "2026-03-01 05:59", 1),
        ("8bit/s,fri-mon 00:00-24:00=none", "2026-03-02 23:59", None),
        ("8bit/s,fri-mon 00:00-24:00=none", "2026-03-03 00:00", 1),
        ("8bit/s,09:00-10:00=16bit/s,08:00-18:00=24bit/s", "2026-03-03 09:30", 2),
        ("08:00-18:00=24bit/s", "2026-03-03 19:30", None),
    ],
)
def test_limits_are_read(text: str, when: str, rate: float | None) -> None:
    assert parse_limit(text).at(datetime.fromisoformat(when)) == rate


@pytest.mark.parametrize(
    "text",
    [
        *("", "fast", "10", "10Mbit", "-1Mbit/s", "0Mbit/s", "1Mbit/s,2Mbit/s", "1Mbit/s,25:00-26:00=none"),
        *("1Mbit/s,08:00-08:00=none", "1Mbit/s,08:61-09:00=none", "1Mbit/s,xyz 08:00-09:00=none"),
        ",".join(["01:00-02:00=none"] * 40),
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(BadLimit) as refused:
        parse_limit(text)
    assert refused.value.cure
