"""Signatures between Hatrack's own processes: what they cover, how long they hold, and what a wrong one is told."""

from __future__ import annotations

import pytest

from service.errors import Unauthenticated
from service.http.signing import HEADER, VALID_S, Verifier, sign, signing_key

KEY = signing_key("a-secret-of-both-sides", "agent")
BODY = b'{"a":1}'


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def signed(clock: Clock, key: bytes = KEY) -> dict[str, str]:
    return sign(key, "POST", "/x?y=1", BODY, bound="session", wall=clock)


def test_what_was_signed_is_accepted_with_its_body_only() -> None:
    clock = Clock()
    check = Verifier(KEY, wall=clock).verify(signed(clock), "POST", "/x?y=1", bound="session")
    check(BODY)
    with pytest.raises(Unauthenticated, match="not the one that was signed"):
        check(BODY + b" ")


@pytest.mark.parametrize(
    ("method", "path", "bound"),
    [
        ("GET", "/x?y=1", "session"),
        ("POST", "/x?y=2", "session"),
        ("POST", "/x?y=1", "another"),
        ("POST", "/x?y=1", ""),
    ],
)
def test_it_holds_for_nothing_else(method: str, path: str, bound: str) -> None:
    clock = Clock()
    with pytest.raises(Unauthenticated, match="signature is wrong"):
        Verifier(KEY, wall=clock).verify(signed(clock), method, path, bound=bound)


@pytest.mark.parametrize(("secret", "purpose"), [("another-secret-here", "agent"), ("a-secret-of-both-sides", "front")])
def test_another_secret_or_purpose_signs_otherwise(secret: str, purpose: str) -> None:
    key = signing_key(secret, purpose)
    clock = Clock()
    with pytest.raises(Unauthenticated, match="same shared secret"):
        Verifier(KEY, wall=clock).verify(signed(clock, key), "POST", "/x?y=1", bound="session")


@pytest.mark.parametrize("header", ["", "1.2.3", "x", "1.2.3.4.5", "a.b.c.é", "a.b.c.\udcff", "\udcff.b.c.d"])
def test_what_is_no_signature_is_refused(header: str) -> None:
    with pytest.raises(Unauthenticated):
        Verifier(KEY).verify({HEADER: header}, "POST", "/x")


@pytest.mark.parametrize(("shift_s", "word"), [(VALID_S + 2, "ago"), (-VALID_S - 2, "ahead")])
def test_it_is_valid_for_a_minute(shift_s: float, word: str) -> None:
    clock = Clock()
    header = signed(clock)
    clock.now += shift_s
    with pytest.raises(Unauthenticated, match=f"{word} by this machine's clock"):
        Verifier(KEY, wall=clock).verify(header, "POST", "/x?y=1", bound="session")


def test_one_that_may_be_used_once_is_not_accepted_again_while_it_is_valid() -> None:
    clock = Clock()
    verifier, header = Verifier(KEY, wall=clock), signed(clock)
    verifier.verify(header, "POST", "/x?y=1", bound="session", once=True)
    clock.now += VALID_S - 1
    with pytest.raises(Unauthenticated, match="used before"):
        verifier.verify(header, "POST", "/x?y=1", bound="session", once=True)
    verifier.verify(signed(clock), "POST", "/x?y=1", bound="session", once=True)
    clock.now += 3 * VALID_S
    verifier.verify(signed(clock), "POST", "/x?y=1", bound="session", once=True)
    assert len(verifier._used) == 1, "what can no longer be repeated is forgotten"
