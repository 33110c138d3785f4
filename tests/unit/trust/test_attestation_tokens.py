"""Attestation tokens and nonces: good once, for their time, of their verifier."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.spec.errors import HoldfastError
from holdfast.trust.host_attestation.challenges import (
    SECONDS,
    Challenges,
    NonceExpired,
    NonceReplayed,
    NonceUnknown,
)
from holdfast.trust.host_attestation.tokens import (
    LIFETIME,
    TokenNotGenuine,
    TokenOfAnotherVerifier,
    TokenOfTheFuture,
    TokenSigner,
    TokenTooOld,
    VerifierKeyDamaged,
)

HOST = "ab" * 32


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> TokenSigner:
    return TokenSigner(_new_key, clock)


def parts(token: str) -> list[dict[str, object]]:
    return [json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2]]


def test_a_token_says_who_and_until_when(signer: TokenSigner, clock: Clock) -> None:
    token, until = signer.issue(HOST, b"\0\x0bname")
    assert until - clock.now == LIFETIME
    header, claims = parts(token)
    assert header == {"alg": "ES256", "kid": signer.verifier, "typ": "JWT"}
    assert {key: claims[key] for key in ("iss", "sub", "ak", "verdict")} == {
        "iss": signer.verifier, "sub": HOST, "ak": "000b6e616d65", "verdict": "trusted",
    }  # fmt: skip
    assert signer.check(token).sub == HOST


@pytest.mark.parametrize(
    ("hours", "refusal"), [(1, TokenTooOld), (-1, TokenOfTheFuture)], ids=["fast", "slow"]
)
def test_a_clock_an_hour_off_is_noticed(
    signer: TokenSigner, clock: Clock, hours: int, refusal: type[HoldfastError]
) -> None:
    token, _ = signer.issue(HOST, b"")
    clock.now += timedelta(hours=hours)
    with pytest.raises(refusal):
        signer.check(token)


def test_a_token_ends_to_the_second(signer: TokenSigner, clock: Clock) -> None:
    token, until = signer.issue(HOST, b"")
    clock.now = until - timedelta(seconds=1)
    assert signer.check(token)
    clock.now = until
    with pytest.raises(TokenTooOld):
        signer.check(token)


def test_a_token_of_another_verifier_is_refused(signer: TokenSigner, clock: Clock) -> None:
    other = TokenSigner(_new_key, clock)
    token, _ = other.issue(HOST, b"")
    with pytest.raises(TokenOfAnotherVerifier):
        signer.check(token)
    # The other one's word under our name: the signature tells.
    header, claims = parts(token)
    header["kid"] = claims["iss"] = signer.verifier
    ours = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    with pytest.raises(TokenNotGenuine, match="does not verify"):
        signer.check(b".".join(ours).decode() + "." + token.split(".")[2])


@pytest.mark.parametrize("algorithm", ["none", "HS256", "es256"])
def test_no_other_algorithm_is_taken(signer: TokenSigner, algorithm: str) -> None:
    token, _ = signer.issue(HOST, b"")
    header, rest = parts(token)[0], token.split(".", 1)[1]
    text = base64.urlsafe_b64encode(json.dumps(header | {"alg": algorithm}).encode()).rstrip(b"=").decode()
    with pytest.raises(TokenNotGenuine):
        signer.check(f"{text}.{rest}")


@settings(max_examples=500, deadline=None)
@given(where=st.integers(0, 1000), junk=st.text(min_size=1, max_size=4))
def test_an_altered_token_is_refused(where: int, junk: str) -> None:
    signer = TokenSigner(lambda: KEY)
    token, _ = signer.issue(HOST, b"")
    altered = token[: where % len(token)] + junk + token[where % len(token) + len(junk) :]
    if altered != token:
        with pytest.raises((TokenNotGenuine, TokenOfAnotherVerifier)):
            signer.check(altered)


KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("token", ["", "..", "a.b.c", "e30.e30.e30", "[" * 5000 + "..", "\ud800.e30.e30"])
def test_what_is_no_token_is_refused(signer: TokenSigner, token: str) -> None:
    with pytest.raises(TokenNotGenuine):
        signer.check(token)


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    first = TokenSigner.of(tmp_path)
    assert not any(tmp_path.iterdir())
    assert first.verifier == first.verifier == TokenSigner.of(tmp_path).verifier
    path = tmp_path / "attestation-verifier.key"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("no key")
    with pytest.raises(VerifierKeyDamaged):
        TokenSigner.of(tmp_path).issue(HOST, b"")


class Seconds:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_nonce_is_good_once_and_for_its_time() -> None:
    clock = Seconds()
    challenges: Challenges[str] = Challenges(clock)
    first, second = challenges.issue("one", 1), challenges.issue("two", 1)
    assert challenges.take(first) == "one"
    with pytest.raises(NonceReplayed):
        challenges.take(first)
    clock.now += SECONDS + 1
    with pytest.raises(NonceExpired):
        challenges.take(second)
    with pytest.raises(NonceReplayed):
        challenges.take(second)
    with pytest.raises(NonceUnknown):
        challenges.take(bytes(32))
    clock.now += 2 * SECONDS
    challenges.issue("three", 1)
    with pytest.raises(NonceUnknown):
        challenges.take(first)


def test_nonces_are_bounded() -> None:
    challenges: Challenges[int] = Challenges()
    nonces = [challenges.issue(number, number) for number in range(5000)]
    assert len(challenges._given) == 4096
    with pytest.raises(NonceUnknown):
        challenges.take(nonces[0])
    assert challenges.take(nonces[-1]) == 4999


def test_a_flood_for_one_host_drops_no_other_hosts_nonce() -> None:
    challenges: Challenges[str] = Challenges()
    mine = challenges.issue("mine", "me")
    for _ in range(5000):
        last = challenges.issue("theirs", "them")
    assert challenges.take(mine) == "mine" and challenges.take(last) == "theirs"
    assert len(challenges._given) <= 17
