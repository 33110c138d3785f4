"""Every verb in every state has an answer, and the answers make sense together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.spec.vm import VmState
from holdfast.vm.admission import Accepted, AlreadySo, Refused, Verb, VmBusy, VmInWrongState, admit
from holdfast.vm.reconcile import HOST_RESTARTED, Found, found_by_status, settle

states = st.sampled_from(list(VmState))
verbs = st.sampled_from(list(Verb))


@given(states, verbs, st.sampled_from([None, "op-1"]))
def test_every_refusal_is_typed_and_has_words(state: VmState, verb: Verb, operation: str | None) -> None:
    verdict = admit("web", state, operation, verb)
    if isinstance(verdict, Refused):
        assert isinstance(verdict.error, VmBusy | VmInWrongState)
        assert "'web'" in verdict.error.message and verdict.error.value
        assert verdict.error.cure or state is VmState.MIGRATING or verb in (Verb.STOP, Verb.KILL)


@pytest.mark.parametrize(
    ("state", "verb", "expected"),
    [
        (VmState.OFF, Verb.START, Accepted),
        (VmState.SAVED, Verb.START, Accepted),
        (VmState.FAILED, Verb.START, Accepted),
        (VmState.RUNNING, Verb.START, AlreadySo),
        (VmState.PAUSED, Verb.START, Refused),
        (VmState.OFF, Verb.STOP, AlreadySo),
        (VmState.RUNNING, Verb.DELETE, Refused),
        (VmState.RUNNING, Verb.RENAME, Refused),
        (VmState.RUNNING, Verb.CLONE, Refused),
        (VmState.SAVED, Verb.KILL, Accepted),
        (VmState.SAVED, Verb.CHANGE, Refused),
        (VmState.STARTING, Verb.KILL, Accepted),
    ],
)
def test_rules_people_rely_on(state: VmState, verb: Verb, expected: type) -> None:
    assert isinstance(admit("web", state, None, verb), expected)


@given(states)
def test_kill_is_never_blocked_by_an_operation(state: VmState) -> None:
    verdict = admit("web", state, "op-1", Verb.KILL)
    assert not (isinstance(verdict, Refused) and isinstance(verdict.error, VmBusy))


@given(states, st.sampled_from(list(Found)), st.booleans())
def test_settling_is_stable_and_never_runs_a_vm_twice(state: VmState, found: Found, saved: bool) -> None:
    settled = settle(state, found, saved)
    if settled.keep_machine:
        assert found not in (Found.NOTHING, Found.UNREACHABLE, Found.HALF_STARTED, Found.POWERED_OFF)
        assert settled.state in (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING)
    else:
        assert settled.state in (VmState.OFF, VmState.FAILED, VmState.SAVED)
        assert settle(settled.state, Found.NOTHING, saved) == settle(settled.state, Found.NOTHING, saved)
        assert settle(settled.state, Found.NOTHING, saved).state is settled.state
    assert (settled.state is VmState.FAILED) == bool(settled.failure) or state is VmState.FAILED


@pytest.mark.parametrize(
    ("state", "found", "saved", "expected"),
    [
        (VmState.RUNNING, Found.NOTHING, False, VmState.FAILED),
        (VmState.RUNNING, Found.POWERED_OFF, False, VmState.OFF),
        (VmState.PAUSED, Found.RUNNING, False, VmState.RUNNING),
        (VmState.STOPPING, Found.NOTHING, False, VmState.OFF),
        (VmState.STARTING, Found.HALF_STARTED, True, VmState.SAVED),
        (VmState.STARTING, Found.HALF_STARTED, False, VmState.OFF),
        (VmState.SAVING, Found.WRITTEN_OUT, True, VmState.SAVED),
        (VmState.SAVING, Found.WRITTEN_OUT, False, VmState.RUNNING),
        (VmState.SAVING, Found.NOTHING, False, VmState.FAILED),
        (VmState.SAVED, Found.WRITTEN_OUT, True, VmState.SAVED),
        (VmState.RUNNING, Found.WRITTEN_OUT, False, VmState.RUNNING),
        (VmState.PAUSED, Found.WRITTEN_OUT, False, VmState.PAUSED),
        (VmState.SAVED, Found.NOTHING, False, VmState.FAILED),
    ],
)
def test_what_a_crash_leaves_is_settled(state: VmState, found: Found, saved: bool, expected: VmState) -> None:
    assert settle(state, found, saved).state is expected


def test_statuses_of_qemu_are_understood() -> None:
    assert found_by_status("running") is Found.RUNNING
    assert found_by_status("io-error") is Found.PAUSED
    assert found_by_status("shutdown") is Found.POWERED_OFF


def test_a_restarted_host_is_said_to_be_the_reason() -> None:
    assert settle(VmState.RUNNING, Found.NOTHING, False, HOST_RESTARTED).failure == HOST_RESTARTED
    assert settle(VmState.OFF, Found.NOTHING, False, HOST_RESTARTED).failure == ""
