from __future__ import annotations

import time

import pytest

from service.access.authentication import MAX_CACHED_KEYS, MAX_KEY_CHARS, Authenticator, KeyEntry
from service.access.caller import Caller, Scope
from service.access.keys import ALPHABET, make_key, well_formed
from service.errors import BadRequest, Forbidden, HatrackError, Unauthenticated

ADMIN = "an-admin-key-that-was-given"


class Counted(dict[bytes, KeyEntry]):
    """A table that counts how often it is looked up."""

    looked_up = 0

    def get(self, key: bytes, default: KeyEntry | None = None) -> KeyEntry | None:  # type: ignore[override]
        self.looked_up += 1
        return super().get(key, default)


def known(*, project: str = "acme", scope: Scope = Scope.INFER, expires_at: float = 2e12) -> tuple[Authenticator, str]:
    """An authenticator that knows one key, and the key."""
    authenticator, key = Authenticator(ADMIN), make_key()
    authenticator.put(authenticator.hmac(key), KeyEntry(Caller("key_1", project, frozenset({scope})), expires_at))
    return authenticator, key


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer {}"},
        {"authorization": "bearer {}"},
        {"authorization": "Bearer   {} "},
        {"x-api-key": "{}"},
        {"x-api-key": "{}", "authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": "{}", "authorization": "Bearer {}"},
    ],
)
def test_where_a_key_may_stand(headers: dict[str, str]) -> None:
    authenticator, key = known()
    given = {name: value.format(key) for name, value in headers.items()}
    assert authenticator.authenticate(given).key_id == "key_1"
    assert authenticator.authenticate(given).key_id == "key_1", "from memory"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "no API key"),
        ({"authorization": ""}, "no API key"),
        ({"authorization": "Bearer "}, "invalid Authorization header"),
        ({"authorization": "{}"}, "invalid Authorization header"),
        ({"authorization": "Basic {}"}, "invalid Authorization header"),
        ({"authorization": "Bearer {}x"}, "unknown API key"),
        ({"authorization": "Bearer Bearer {}"}, "unknown API key"),
        ({"authorization": "Bearer ké"}, "unknown API key"),
        ({"x-api-key": "Bearer {}"}, "unknown API key"),
        ({"x-api-key": "k" * (MAX_KEY_CHARS + 1)}, "unknown API key"),
    ],
)
def test_what_is_no_key_is_401_with_a_challenge_and_never_repeated(headers: dict[str, str], said: str) -> None:
    authenticator, key = known()
    authenticator.authenticate({"authorization": f"Bearer {key}"})
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate({name: value.format(key) for name, value in headers.items()})
    assert said in caught.value.message
    assert caught.value.headers["www-authenticate"].startswith("Bearer")
    assert key not in caught.value.message


def test_two_headers_with_different_keys_are_refused() -> None:
    """Or a proxy in front that looks at the other one would let in somebody else."""
    authenticator, key = known()
    for bearer, api_key in ((key, "nonsense"), ("nonsense", key), (ADMIN, key), ("nonsense", "other")):
        with pytest.raises(BadRequest) as caught:
            authenticator.authenticate({"authorization": f"Bearer {bearer}", "x-api-key": api_key})
        assert caught.value.code == "conflicting_keys"
        assert not any(secret in caught.value.message for secret in (key, ADMIN, "nonsense"))


def test_a_typo_is_told_by_the_checksum_without_looking_it_up() -> None:
    authenticator, key = known()
    table = Counted()
    authenticator.load(table)
    typo = key[:10] + ALPHABET[ALPHABET.index(key[10]) - 1] + key[11:]
    assert well_formed(key)
    assert not well_formed(typo)
    for wrong in (typo, key[:-1], key + "0", "hk_", ADMIN + "x"):
        with pytest.raises(Unauthenticated):
            authenticator.authenticate({"authorization": f"Bearer {wrong}"})
    assert table.looked_up == 0
    with pytest.raises(Unauthenticated):
        authenticator.authenticate({"authorization": f"Bearer {key}"})
    assert table.looked_up == 1


def test_an_expired_key_is_told_so_even_after_it_was_good(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator, key = known(expires_at=1000)
    bearer = {"authorization": f"Bearer {key}"}
    monkeypatch.setattr(time, "time", lambda: 999.9)
    assert authenticator.authenticate(bearer).key_id == "key_1"
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    with pytest.raises(Unauthenticated, match="has expired"):
        authenticator.authenticate(bearer)


def test_changes_count_from_the_next_request_on() -> None:
    authenticator, key = known()
    bearer, admin = {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {ADMIN}"}
    assert (authenticator.authenticate(bearer).key_id, authenticator.authenticate(admin).key_id) == ("key_1", "admin")
    authenticator.set_admin_key("another-admin-key")
    with pytest.raises(Unauthenticated, match="unknown API key"):
        authenticator.authenticate(admin)
    assert authenticator.authenticate(bearer).key_id == "key_1"
    authenticator.drop(frozenset({authenticator.hmac(key)}))
    with pytest.raises(Unauthenticated, match="unknown API key"):
        authenticator.authenticate(bearer)
    assert authenticator.authenticate({"authorization": "Bearer another-admin-key"}).key_id == "admin"


def test_an_admin_acts_where_the_header_says() -> None:
    authenticator, key = known(project="default", scope=Scope.ADMIN)
    for admin in (ADMIN, key):
        bearer = {"authorization": f"Bearer {admin}"}
        assert authenticator.authenticate(bearer).project == "default"
        assert authenticator.authenticate(bearer | {"openai-project": "acme"}).project == "acme"
        assert authenticator.authenticate(bearer).project == "default", "only for that request"


@pytest.mark.parametrize("name", ["", "Acme", "a b", "../x", "a" * 65, "proj_AbC", "é"])
def test_a_header_that_is_no_projects_name_is_refused(name: str) -> None:
    authenticator, _ = known()
    with pytest.raises(BadRequest) as caught:
        authenticator.authenticate({"authorization": f"Bearer {ADMIN}", "openai-project": name})
    assert caught.value.param == "OpenAI-Project"


def test_a_key_of_a_project_cannot_leave_it() -> None:
    authenticator, key = known(project="acme")
    bearer = {"authorization": f"Bearer {key}"}
    assert authenticator.authenticate(bearer | {"openai-project": "acme"}).project == "acme"
    refusals: list[HatrackError] = []
    for other in ("default", "globex"):
        with pytest.raises(Forbidden) as caught:
            authenticator.authenticate(bearer | {"openai-project": other})
        refusals.append(caught.value)
    assert {error.code for error in refusals} == {"project_mismatch"}
    assert not any("acme" in error.message for error in refusals)


def test_strangers_fill_no_memory_and_good_keys_a_bounded_one() -> None:
    authenticator = Authenticator(ADMIN)
    for number in range(2000):
        with pytest.raises(Unauthenticated):
            authenticator.authenticate({"authorization": f"Bearer stranger-{number}"})
    assert len(authenticator._cache) == 0
    keys = [make_key() for _ in range(MAX_CACHED_KEYS + 10)]
    caller = Caller("key_1", "acme", frozenset({Scope.INFER}))
    authenticator.load({authenticator.hmac(key): KeyEntry(caller) for key in keys})
    for key in keys:
        authenticator.authenticate({"authorization": f"Bearer {key}"})
        assert len(authenticator._cache) <= MAX_CACHED_KEYS


def test_a_key_is_known_by_its_id_as_long_as_it_is_valid() -> None:
    authenticator, key = known()
    assert authenticator.caller_with_id("key_1", "acme") == authenticator.authenticate({"x-api-key": key})
    admin = authenticator.caller_with_id("admin", "acme")
    assert authenticator.caller_with_id("admin", "acme", authenticator.admin_hmac) == admin
    with pytest.raises(Unauthenticated, match="replaced"):
        authenticator.caller_with_id("admin", "acme", b"another")
    assert (admin.key_id, admin.project, admin.may(Scope.TRAIN)) == ("admin", "acme", True)
    authenticator.drop(frozenset({authenticator.hmac(key)}))
    with pytest.raises(Unauthenticated, match="key_1 was revoked"):
        authenticator.caller_with_id("key_1", "acme")
    expired, _ = known(expires_at=time.time() - 1)
    with pytest.raises(Unauthenticated, match="key_1 has expired"):
        expired.caller_with_id("key_1", "acme")
