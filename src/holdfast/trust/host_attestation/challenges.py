"""Nonces that a verifier gave out: each is good once, for one host and one purpose, for a short time.

They are remembered in memory only. After a restart none is known, which costs a host one more try.
"""

import secrets
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from holdfast.spec.errors import Conflict, NotFound

T = TypeVar("T")
SECONDS = 120
_MOST = 4096
_MOST_OF_ONE = 16


class NonceUnknown(NotFound):
    id = "host-nonce-unknown"


class NonceReplayed(Conflict):
    id = "host-nonce-replayed"


class NonceExpired(Conflict):
    id = "host-nonce-expired"


@dataclass
class _Given(Generic[T]):
    purpose: T | None
    """None once it was used."""
    until: float
    subject: Hashable


@dataclass
class Challenges(Generic[T]):
    """Owner of the nonces; `T` says what a nonce is for."""

    clock: Callable[[], float] = time.monotonic
    _given: dict[bytes, _Given[T]] = field(default_factory=dict)

    def issue(self, purpose: T, subject: Hashable) -> bytes:
        """A fresh nonce of 32 bytes. Beyond 16 of one subject, and 4,096 in all, the oldest are forgotten."""
        now = self.clock()
        # A used one is remembered beyond its time, so that a replay is called one.
        for nonce in [nonce for nonce, given in self._given.items() if given.until + SECONDS < now]:
            del self._given[nonce]
        own = [nonce for nonce, given in self._given.items() if given.subject == subject]
        for nonce in own[: max(0, len(own) + 1 - _MOST_OF_ONE)]:
            del self._given[nonce]
        while len(self._given) >= _MOST:
            del self._given[next(iter(self._given))]
        nonce = secrets.token_bytes(32)
        self._given[nonce] = _Given(purpose, now + SECONDS, subject)
        return nonce

    def take(self, nonce: bytes) -> T:
        """What it was given for; never again afterwards.

        Raises:
            NonceUnknown: never given, or forgotten long since.
            NonceReplayed: it was used before.
            NonceExpired: it comes too late.
        """
        given = self._given.get(nonce)
        told = nonce.hex()
        if given is None:
            raise NonceUnknown(
                "this verifier gave out no such nonce", value=told, cure="Ask for a challenge."
            )
        if given.purpose is None:
            raise NonceReplayed(
                "the nonce was used before: this may be a recording of an earlier boot",
                value=told,
                cure="Ask for a new challenge.",
            )
        purpose, given.purpose = given.purpose, None
        if given.until < self.clock():
            raise NonceExpired(
                f"the answer came later than {SECONDS} s after the challenge",
                value=told,
                cure="Ask for a new challenge.",
            )
        return purpose
