"""Fixtures of the tests with real guests: a daemon, and images that several tests share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "guests")]

from live_host import LiveHost, live_host
from namespaces import Peers, own_namespace
from small_guest import SmallGuest, small_guest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.machine)


@pytest.fixture(scope="session")
def small() -> SmallGuest:
    return small_guest()


def with_small_images(host: LiveHost, guest: SmallGuest) -> LiveHost:
    host.add_image(guest.kernel, "small-kernel")
    host.add_image(guest.initrd, "small-initrd")
    return host


@pytest.fixture
def host(tmp_path: Path, small: SmallGuest) -> Iterator[LiveHost]:
    """A daemon that knows the small guest's kernel and initrd."""
    with live_host(tmp_path) as running:
        yield with_small_images(running, small)


def small_vm(name: str, append: str, **more: object) -> dict[str, object]:
    """The request for a small VM."""
    return {
        "name": name,
        "cpus": 1,
        "memory": "96MiB",
        "kernel": {"kernel": "small-kernel", "initrd": "small-initrd", "append": append},
        "disks": [{"size": "16MiB"}],
        "nics": [],
        **more,
    }


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
def peer(namespace: None) -> Iterator[Peers]:
    peers = Peers()
    yield peers
    peers.close()
