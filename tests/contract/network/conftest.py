"""The tests of switches run in a network namespace of their own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))

from namespaces import Peers, own_namespace


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
def peer(namespace: None) -> Iterator[Peers]:
    peers = Peers()
    yield peers
    peers.close()
