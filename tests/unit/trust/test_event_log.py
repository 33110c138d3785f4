"""The event log: parsed within bounds, replayed into the very PCRs of the guest that wrote it."""

import hashlib
import struct

import pytest
from boots import GRUB, LOG, draft, header, measured, written

from holdfast.spec.trust import Bank
from holdfast.trust.event_log import (
    MAX_LOG,
    LogMalformed,
    LogPadded,
    LogTooLarge,
    LogTruncated,
    parse_log,
    replay,
)

# As the guest's kernel showed them (/sys/class/tpm/tpm0/pcr-sha256), beside this log.
GUEST = {
    0: "d3e67a63410f29d1b721fc0c21467b40dfe21a4b89ba32a3ea8417c8eb3b59a7",
    1: "fc077414fe450e829f8361a81ca5478ed413fb26bf25b25b6bcadc1b301be7fe",
    4: "c2125c9768ec0280072b8fc88e2ab4c1ee344bb954a06145248ffc83bd4d15c8",
    5: "1c9a072caf873a1608a5c55bad891b24da44979dd57e44864e164b2fd3870eb1",
    7: "f0dfe98457547ded663034b9d2569127cf4579790e4ca065a643292ecac6b841",
    8: "40e998ce58bd6f9368d829d6ce3dcec5b8e4bf3b179de142589d4b4f4cd4cf6e",
    9: "ab3f93ef5515d69b37f5f3e2eb74cd49a92363550cdd5c43fd2b93353cb8bfb3",
    14: "b9c97933fe323334271a718fdf2966e0609afcb793f3b68aaf18fc31ea39dc0a",
}


def event(pcr: int, kind: int, data: bytes = b"", count: int = 1, algorithm: int = 11) -> bytes:
    digest = struct.pack("<H", algorithm) + bytes(32)
    return (
        struct.pack("<III", pcr, kind, count) + digest * min(count, 9) + struct.pack("<I", len(data)) + data
    )


def test_the_real_log_replays_to_the_guests_pcrs() -> None:
    replayed = replay(parse_log(LOG), Bank.SHA256)
    assert {pcr: replayed[pcr].hex() for pcr in GUEST} == GUEST


def test_a_log_written_again_is_the_same() -> None:
    assert written(draft()) == LOG


def test_data_are_proven_by_their_digest_alone() -> None:
    events = {each.number: each for each in parse_log(LOG).events}
    assert events[4].proves(events[4].data)
    assert not events[4].proves(events[4].data + b"\0")
    assert not events[GRUB].proves(events[GRUB].data)


@pytest.mark.parametrize("cut", [1, 31, 40, 60, 66, 100, 5000, len(LOG) - 1])
def test_a_log_cut_short_is_refused(cut: int) -> None:
    with pytest.raises((LogTruncated, LogMalformed)) as caught:
        parse_log(LOG[:cut])
    assert cut < 65 or caught.type is LogTruncated


@pytest.mark.parametrize("padding", [bytes(12), bytes(4096), b"\xff" * 64])
def test_padding_is_refused(padding: bytes) -> None:
    with pytest.raises(LogPadded):
        parse_log(LOG + padding)


def test_sizes_are_bounded() -> None:
    with pytest.raises(LogTooLarge):
        parse_log(LOG + bytes(MAX_LOG))
    with pytest.raises(LogTooLarge):
        parse_log(header() + event(1, 5) * 5000)


@pytest.mark.parametrize(
    "log",
    [
        event(0, 3, b"Spec ID Event03\0"),
        b"\1" + LOG[1:],
        LOG.replace(b"Spec ID Event03", b"Spec ID Event02"),
        header({11: 20}) + event(1, 5),
        header({11: 32, 0x1234: 65}),
        header({11: 0}),
        header() + event(24, 5),
        header() + event(0xFFFFFFFF, 5),
        header() + event(1, 5, count=2),
        header() + event(1, 5, count=0xFFFFFFFF),
        header() + event(1, 5, algorithm=12),
        header() + event(0, 3, b"StartupLocality\0\x07"),
        header() + event(0, 3, b"StartupLocality\0"),
        header() + event(1, 3, b"StartupLocality\0\x03"),
        header() + event(0, 5) + event(0, 3, b"StartupLocality\0\x03"),
    ],
)
def test_what_cannot_be_is_refused(log: bytes) -> None:
    with pytest.raises((LogMalformed, LogTruncated)):
        parse_log(log)


def test_a_huge_size_is_not_believed() -> None:
    with pytest.raises(LogTruncated):
        parse_log(header() + event(1, 5)[:-4] + b"\xff\xff\xff\xff")


def test_the_startup_locality_begins_pcr_0() -> None:
    log = parse_log(header() + event(0, 3, b"StartupLocality\0\x03") + event(0, 5))
    assert replay(log, Bank.SHA256)[0] == hashlib.sha256(bytes(31) + b"\x03" + bytes(32)).digest()


def test_an_event_of_no_action_extends_nothing_and_is_no_event() -> None:
    entries = [*draft(), measured(4, 3, b"nothing")]
    log = parse_log(written(entries))
    assert replay(log, Bank.SHA256) == replay(parse_log(LOG), Bank.SHA256)
    assert all(each.data != b"nothing" for each in log.events)


def test_a_bank_that_the_log_lacks_is_refused() -> None:
    with pytest.raises(LogMalformed):
        replay(parse_log(LOG), Bank.SHA384)


def test_one_bank_alone_proves_nothing_of_the_other() -> None:
    sha256, sha384 = hashlib.sha256(b"true").digest(), hashlib.sha384(b"false").digest()
    both = header({11: 32, 12: 48}) + struct.pack("<IIIH", 1, 5, 2, 11) + sha256
    both += struct.pack("<H", 12) + sha384 + struct.pack("<I", 4) + b"true"
    log = parse_log(both)
    assert log.banks == (Bank.SHA256, Bank.SHA384)
    (whole,), (first,), (second,) = (
        log.events,
        log.only(Bank.SHA256, [1]).events,
        log.only(Bank.SHA384, [1]).events,
    )
    assert not whole.proves(b"true")
    assert not log.only(Bank.SHA256, [0, 2]).events
    assert first.proves(b"true") and second.proves(b"false") and not second.proves(b"true")
