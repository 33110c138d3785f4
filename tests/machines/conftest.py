"""Fixtures of the tests with real guests: a daemon, and images that several tests share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "guests")]

from live_host import LiveHost, live_host
from namespaces import Peers, own_namespace
from small_guest import SmallGuest, small_guest
from small_vms import with_small_images

_LONGEST = ("test_trusted.py", "test_lifecycle.py", "test_switches.py", "test_crash.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.machine)

    def turn(item: pytest.Item) -> int:
        """The longest files first, after everything that is fast: else one worker ends alone, and late."""
        if here not in Path(item.path).parents:
            return -1
        return _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST)

    items.sort(key=turn)


@pytest.fixture(scope="session")
def small() -> SmallGuest:
    return small_guest()


@pytest.fixture
def host(tmp_path: Path, small: SmallGuest) -> Iterator[LiveHost]:
    """A daemon that knows the small guest's kernel and initrd."""
    with live_host(tmp_path) as running:
        yield with_small_images(running, small)


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
def peer(namespace: None) -> Iterator[Peers]:
    peers = Peers()
    yield peers
    peers.close()
