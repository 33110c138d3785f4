"""Limits of a disk: what is understood, what contradicts itself, and what a change makes of them."""

import random
from typing import Any

import pytest
from pydantic import ValidationError

from holdfast.spec.disk_requests import BadLimits, DiskAdd, IoLimitsChange
from holdfast.spec.units import GIB, MIB, TIB
from holdfast.spec.vm import IoLimits

_RATES = ("iops", "iops_read", "iops_write", "bandwidth", "bandwidth_read", "bandwidth_write")
_NAMES = (*_RATES, "burst_iops", "burst_bandwidth")


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [("100MiB", 100 * MIB), ("1.5g", 3 * GIB // 2), (" 2 k ", 2048), (4096, 4096), ("1TiB", TIB)],
)
def test_bandwidth_is_written_as_sizes_are(written: Any, bytes_: int) -> None:
    assert IoLimits.model_validate({"bandwidth": written}).bandwidth == bytes_
    assert IoLimitsChange.model_validate({"bandwidth_read": written}).bandwidth_read == bytes_


@pytest.mark.parametrize(
    "wrong",
    [
        {"iops": 0},
        {"iops": -1},
        {"iops": 10**9 + 1},
        {"iops": "1.5"},
        {"iops": "many"},
        {"bandwidth": 0},
        {"bandwidth": "0.3"},
        {"bandwidth": "-1MiB"},
        {"bandwidth": "2TiB"},
        {"bandwidth": "fast"},
        {"burst_seconds": 0},
        {"burst_seconds": 3601},
        {"iops": 5, "iops_read": 5},
        {"bandwidth": MIB, "bandwidth_write": MIB},
        {"burst_iops": 100},
        {"burst_iops": 100, "bandwidth": MIB},
        {"iops": 200, "burst_iops": 199},
        {"iops_read": 10, "iops_write": 300, "burst_iops": 200},
        {"speed": 3},
    ],
)
def test_what_is_no_limit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        IoLimits.model_validate(wrong)


def test_zero_lifts_a_limit_and_none_leaves_it() -> None:
    before = IoLimits(iops=100, burst_iops=300, burst_seconds=7, bandwidth_read=MIB)
    assert IoLimitsChange().applied(before) == before
    lifted = IoLimitsChange(iops=0, burst_iops=0).applied(before)
    assert lifted == IoLimits(burst_seconds=7, bandwidth_read=MIB)
    turned = IoLimitsChange(iops=0, iops_read=50, burst_iops=60).applied(before)
    assert (turned.iops, turned.iops_read, turned.burst_iops) == (None, 50, 60)
    whole = IoLimitsChange.model_validate(dict.fromkeys(_NAMES, 0))
    assert whole.applied(before) == IoLimits(burst_seconds=7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iops_read": 5}, "iops limits reads and writes together"),
        ({"iops": 0}, "burst_iops needs a limit"),
        ({"iops": 400}, "less than the limit of 400"),
        ({"burst_bandwidth": MIB // 2}, "less than the limit of 1048576"),
    ],
)
def test_a_change_that_contradicts_what_holds_is_told(change: dict[str, int], said: str) -> None:
    before = IoLimits(iops=100, burst_iops=300, bandwidth_write=MIB)
    with pytest.raises(BadLimits, match=said) as caught:
        IoLimitsChange(**change).applied(before)
    assert caught.value.value == change and "0" in caught.value.cure


def test_every_limit_that_is_taken_can_be_lifted_again() -> None:
    chance, taken = random.Random(4), 0
    for _ in range(500):
        limits = {name: chance.randrange(1, 9) for name in chance.sample(_NAMES, chance.randrange(5))}
        try:
            before = IoLimits.model_validate(limits)
        except ValidationError:
            continue
        taken += 1
        assert IoLimitsChange.model_validate(dict.fromkeys(limits, 0)).applied(before) == IoLimits()
    assert 50 < taken < 450


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"full_copy": True},
        {"size": "512KiB"},
        {"size": "-1"},
        {"size": "65537TiB"},
        {"size": "1GiB", "bus": "ide"},
        {"size": "1GiB", "pool": "../x"},
        {"device": "/dev/x", "size": "1GiB"},
        {"device": "/dev/x", "pool": "fast"},
        {"device": "/dev/x", "image": "debian"},
        {"device": "/" + "x" * 4096},
        {"size": "1GiB", "limits": {"iops": 5, "iops_read": 5}},
    ],
)
def test_a_disk_that_nobody_could_make_is_not_asked_for(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DiskAdd.model_validate(body)


def test_what_a_disk_needs_to_be_asked_for() -> None:
    for body in ({"size": "1MiB"}, {"image": "debian-12"}, {"device": "/dev/vdb", "bus": "nvme"}):
        assert DiskAdd.model_validate(body).limits == IoLimits()
