from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.errors import EndpointUnknown, SettingsError
from trainer.evaluate.endpoints import OperatorEndpoints, read_endpoints

Write = Callable[..., Path]

WHOLE = """
[endpoints.big]
url = "https://models.example/openai/v1/"
model = "large-1"
key_env = "BIG_KEY"

[endpoints.near]
url = "http://127.0.0.1:9000"
key_file = "{key_file}"

[judges.strict]
endpoint = "big"
model = "large-1"
rubric = "The better answer is right, and says so shortly."
least_kappa = 0.7
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("BIG_KEY", "sk-big")
    (tmp_path / "near.key").write_text("sk-near\n")

    def written(content: str = WHOLE) -> Path:
        path = tmp_path / "endpoints.toml"
        path.write_text(content.replace("{key_file}", str(tmp_path / "near.key")))
        return path

    return written


def test_it_names_endpoints_with_their_keys_and_judges(write: Write) -> None:
    outside = read_endpoints(write())
    found = outside.reachable()
    assert {name: endpoint.url for name, endpoint in found.items()} == {
        "big": "https://models.example/openai",
        "near": "http://127.0.0.1:9000",
    }
    keys = {name: endpoint.key.get_secret_value() for name, endpoint in found.items() if endpoint.key}
    assert keys == {"big": "sk-big", "near": "sk-near"}
    judge = outside.judge("strict")
    assert (judge.least_kappa, judge.least_reviews, judge.max_lean, judge.review_share) == (0.7, 100, 0.1, 0.1)


def test_a_judge_without_a_model_asks_its_endpoints(write: Write) -> None:
    stripped = WHOLE.replace('endpoint = "big"\nmodel = "large-1"\n', 'endpoint = "big"\n')
    assert stripped != WHOLE
    assert read_endpoints(write(stripped)).judge("strict") == read_endpoints(write()).judge("strict")
    with pytest.raises(SettingsError, match=r"judges\.strict\.model"):
        read_endpoints(write(stripped.replace('endpoint = "big"', 'endpoint = "near"')))


def test_without_a_file_there_are_none_and_the_error_says_how_to_name_one() -> None:
    assert read_endpoints(None) == OperatorEndpoints()
    with pytest.raises(EndpointUnknown, match="HATRACK_TRAINER_ENDPOINTS"):
        read_endpoints(None).judge("strict")


def test_an_unknown_name_is_answered_with_the_known_ones(write: Write) -> None:
    outside = read_endpoints(write())
    with pytest.raises(EndpointUnknown, match="no endpoint named 'huge' in the operator's settings; known: big, near"):
        outside.check_endpoint("huge")
    with pytest.raises(EndpointUnknown, match="no judge named 'mild' in the operator's settings; known: strict"):
        outside.judge("mild")


def test_agreement_does_not_carry_over_to_another_rubric_or_model(write: Write) -> None:
    judge = read_endpoints(write()).judge("strict")
    digests = {
        changed.digest
        for changed in (
            judge,
            judge.model_copy(update={"model": "large-2"}),
            judge.model_copy(update={"rubric": judge.rubric + "!"}),
            judge.model_copy(update={"least_kappa": 0.1}),
        )
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('url = "https://models.example/openai/v1/"', 'url = "ftp://models.example"', "endpoints.big.url"),
        ('url = "https://models.example/openai/v1/"', 'url = "https://me:pass@models.example"', "endpoints.big.url"),
        ('url = "https://models.example/openai/v1/"\n', "", "endpoints.big.url"),
        ('key_env = "BIG_KEY"', 'key_env = "BIG_KEY"\nkey_file = "/k"', "`key_env` and `key_file` conflict"),
        ('key_env = "BIG_KEY"', 'key_env = "NO_SUCH_KEY"', "NO_SUCH_KEY"),
        ('key_file = "{key_file}"', 'key_file = "/no/such/file"', "/no/such/file"),
        ('key_env = "BIG_KEY"', 'key = "sk-in-the-file"', "endpoints.big.key"),
        ("[endpoints.big]", "[endpoints.Big]", "'Big' is not a valid name"),
        ('endpoint = "big"', 'endpoint = "huge"', "no endpoint named 'huge'; known: big, near"),
        ("least_kappa = 0.7", "least_kappa = 1.7", "judges.strict.least_kappa"),
        ("least_kappa = 0.7", "least_reviews = 49", "judges.strict.least_reviews"),
        ("least_kappa = 0.7", "max_lean = 0", "judges.strict.max_lean"),
        ("least_kappa = 0.7", "max_lean = 0.6", "judges.strict.max_lean"),
        ('rubric = "The better answer is right, and says so shortly."', 'rubric = "good"', "judges.strict.rubric"),
        ("[judges.strict]", "[judges.strict", "cannot be read as TOML"),
    ],
)
def test_an_invalid_file_is_reported_with_the_field(write: Write, old: str, new: str, told: str) -> None:
    assert old in WHOLE
    with pytest.raises(SettingsError) as raised:
        read_endpoints(write(WHOLE.replace(old, new)))
    assert told in str(raised.value)
    assert "sk-" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"HATRACK_TRAINER_ENDPOINTS: .*missing\.toml"):
        read_endpoints(tmp_path / "missing.toml")


def test_an_endpoints_settings_shape_its_requests(write: Write) -> None:
    more = 'max_tokens_field = "max_completion_tokens"\nsend_temperature = false\nfields = {reasoning_effort = "low"}\n'
    found = read_endpoints(write(WHOLE.replace('key_env = "BIG_KEY"\n', f'key_env = "BIG_KEY"\n{more}'))).reachable()
    assert found["big"].sampling(99) == {"max_completion_tokens": 99, "reasoning_effort": "low"}
    assert found["near"].sampling(99) == {"temperature": 0, "max_tokens": 99}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('max_tokens_field = "tokens"', "max_completion_tokens"),
        (
            "fields = {model = 'x'}",
            "'model' is set by the evaluation; `fields` must not contain messages, model, n, stream",
        ),
        ("fields = {at = 2026-01-01}", "cannot be encoded as JSON"),
        ("fields = {at = nan}", "cannot be encoded as JSON"),
    ],
)
def test_an_invalid_request_names_the_field(write: Write, more: str, words: str) -> None:
    with pytest.raises(SettingsError, match=r"endpoints\.big\.") as caught:
        read_endpoints(write(WHOLE.replace('key_env = "BIG_KEY"\n', f'key_env = "BIG_KEY"\n{more}\n')))
    assert words in str(caught.value)
