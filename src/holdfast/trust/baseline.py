"""A boot that was known to be good, and the very events in which another differs from it.

Within one PCR the order of events is measured, so each PCR is aligned by itself: what stayed the same
at both ends, then the longest common runs between.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from holdfast.spec.trust import BOOT_PCRS, Bank, Baseline, BaselineEvent
from holdfast.trust.event_log import Event, EventLog

_MAX_ALIGNED = 128
"""Events of a side that are aligned; beyond, they are compared one by one: alignment is not linear."""


@dataclass(frozen=True, slots=True)
class Difference:
    pcr: int
    before: BaselineEvent | None
    """None: the event is new."""
    after: Event | None
    """None: the event is gone."""


def make_baseline(log: EventLog, bank: Bank, pcrs: Mapping[int, bytes], names: Mapping[int, str]) -> Baseline:
    """Of a log that was proven; `names` says what each event is."""
    events = (
        BaselineEvent(pcr=event.pcr, kind=event.kind, digest=event.text_of(bank), text=names[event.number])
        for event in log.events
        if event.pcr in BOOT_PCRS
    )
    return Baseline(bank=bank, pcrs={pcr: pcrs[pcr].hex() for pcr in sorted(pcrs)}, events=tuple(events))


def differences(baseline: Baseline, log: EventLog, pcr: int) -> Iterator[Difference]:
    """What differs in one PCR, in the order of events."""
    before = [event for event in baseline.events if event.pcr == pcr]
    after = [event for event in log.events if event.pcr == pcr]
    old = [event.digest for event in before]
    new = [event.text_of(baseline.bank) for event in after]
    for tag, first, last, start, stop in _changes(old, new):
        if tag == "equal":
            continue
        for step in range(max(last - first, stop - start)):
            was = before[first + step] if first + step < last else None
            now = after[start + step] if start + step < stop else None
            yield Difference(pcr, was, now)


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    left, right = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(len(left), len(right)) > _MAX_ALIGNED:
        yield "replace", head, head + len(left), head, head + len(right)
        return
    for tag, first, last, start, stop in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        yield tag, head + first, head + last, head + start, head + stop
