"""Addresses of peers as people write them, and whose turn it is to send."""

import threading
from datetime import datetime

import pytest

from holdfast.replication.link import Address
from holdfast.replication.pacing import Pacer
from holdfast.replication.peering import BadPeerAddress, parse_address
from holdfast.spec.replica import Priority


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("https://192.0.2.7:8444", "192.0.2.7", 8444),
        ("https://[2001:db8::7]:8444/", "2001:db8::7", 8444),
        ("https://south.example:1", "south.example", 1),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host=host, port=port)


@pytest.mark.parametrize(
    "text",
    [
        *("", "south", "south:8444", "http://south:8444", "https://south", "https://south:99999"),
        *("https://south:0", "https://a@south:1", "https://south:1/x", "https://south:1?x", "https://[::1:1"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadPeerAddress):
        parse_address(text)


def test_threads_get_their_turns_by_limit_and_priority() -> None:
    now = [0.0]
    pacer = Pacer(lambda: now[0], lambda: datetime(2030, 1, 1))
    free = pacer.flow("south", Priority.NORMAL, "none")
    for _ in range(100):
        pacer.wait(free, 1 << 20)  # nobody holds it back
    slow = pacer.flow("south", Priority.HIGH, "8kbit/s")
    pacer.wait(slow, 1000)  # a second's worth, the burst being spent by it
    gone = threading.Event()

    def send() -> None:
        pacer.wait(slow, 1000)
        gone.set()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert not gone.wait(0.2)
    now[0] = 2.0
    pacer.wait(free, 1)  # who sends meanwhile wakes the others
    assert gone.wait(10)
    thread.join()
