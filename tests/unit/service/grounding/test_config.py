"""`settings.grounding` of a version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.config import load_settings
from service.errors import BadRequest, HatrackError, SettingsError
from service.grounding.config import GroundingSettings
from service.grounding.fields import check_grounding, retrieval_options
from service.registry.catalog import VersionSettings
from service.registry.upload import parse_settings
from trainer.evaluate.arms import grounding_field


def test_a_version_without_grounding_is_stored_as_before_there_was_any() -> None:
    assert parse_settings({"system_prompt": "s"}).stored() == {"system_prompt": "s", "sampling": {}}


def test_what_is_stored_comes_back() -> None:
    given = {
        "vector_store_ids": ["vs_1"],
        "max_num_results": 3,
        "filters": {"type": "eq", "key": "a", "value": "b"},
        "template": "See {passages}",
        "on_failure": "fail_closed",
        "timeout_s": 0.5,
    }
    settings = parse_settings({"grounding": given})
    stored = settings.stored()["grounding"]
    assert {name: stored[name] for name in given} == given
    assert VersionSettings.model_validate(settings.stored()) == settings


@pytest.mark.parametrize(
    ("grounding", "param"),
    [
        ({"vector_store_ids": ["a b"]}, "settings.grounding.vector_store_ids.0"),
        ({"vector_store_ids": [f"vs_{n}" for n in range(9)]}, "settings.grounding.vector_store_ids"),
        ({"max_num_results": 0}, "settings.grounding.max_num_results"),
        ({"score_threshold": 2}, "settings.grounding.score_threshold"),
        ({"template": "no place for them"}, "settings.grounding.template"),
        ({"provider": "http://evil"}, "settings.grounding.provider"),
        ({"on_failure": "shrug"}, "settings.grounding.on_failure"),
        ({"timeout_s": 0}, "settings.grounding.timeout_s"),
        ({"url": "http://evil"}, "settings.grounding.url"),
        ({"filters": {"type": "like", "key": "a", "value": "b"}}, "settings.grounding.filters.type"),
        ("vs_1", "settings.grounding"),
    ],
)
def test_a_wrong_setting_is_named(grounding: Any, param: str) -> None:
    with pytest.raises(HatrackError) as caught:
        parse_settings({"grounding": grounding})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "Value error" not in caught.value.message


VERSION = GroundingSettings(
    vector_store_ids=("vs_1",), score_threshold=0.3, filters={"type": "eq"}, on_failure="fail_closed", timeout_s=1
)


def test_the_request_wins_member_by_member() -> None:
    options = retrieval_options({"max_num_results": 2, "score_threshold": 0, "filters": None}, VERSION)
    assert options is not None
    assert (options.store_ids, options.k, options.threshold, options.filters) == (("vs_1",), 2, 0, {"type": "eq"})
    assert (options.on_failure, options.timeout_s) == ("fail_closed", 1)


def test_another_providers_stores_are_not_the_versions() -> None:
    options = retrieval_options({"provider": "webhook"}, VERSION)
    assert options is not None
    assert options.store_ids == ()
    with pytest.raises(BadRequest, match="vector_store_ids"):
        retrieval_options({"provider": "embedded"}, GroundingSettings(provider="webhook", vector_store_ids=("kb-1",)))


def test_nothing_is_wished_where_nobody_says_so() -> None:
    assert retrieval_options(None, None) is None
    assert retrieval_options(False, VERSION) is None
    assert retrieval_options(None, VERSION) is not None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"grounding_url": "http://kb.example/x"}, "HATRACK_GROUNDING_SECRET"),
        ({"grounding_url": "ftp://kb.example/x", "grounding_secret": "s" * 16}, "HATRACK_GROUNDING_URL"),
        ({"grounding_networks": "10.0.0.0/8 everywhere"}, "HATRACK_GROUNDING_NETWORKS"),
        ({"grounding_on_failure": "shrug"}, "HATRACK_GROUNDING_ON_FAILURE"),
        ({"grounding_timeout_s": 0}, "HATRACK_GROUNDING_TIMEOUT_S"),
        ({"grounding_min_score": 1.5}, "HATRACK_GROUNDING_MIN_SCORE"),
    ],
)
def test_a_wrong_gateway_setting_is_named(given: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_settings(**given)


def test_the_default_minimum_score_is_for_the_scores_that_it_was_measured_on() -> None:
    default = load_settings().min_passage_score
    assert 0 < default < 0.2
    url = {"embeddings_url": "http://embeddings.example/v1", "embeddings_model": "e5"}
    for other in (url, {"embeddings_model": "models/e5"}, {"grounding_vector_weight": 0.9}):
        assert load_settings(**other).min_passage_score == 0
        assert load_settings(**other, grounding_min_score=0.3).min_passage_score == 0.3
    assert load_settings(grounding_min_score=0).min_passage_score == 0


def test_the_webhooks_secret_is_in_no_message() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(grounding_secret="short-secret")
    assert "short-secret" not in str(caught.value)


def test_networks_are_separated_by_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_GROUNDING_NETWORKS", "10.0.0.0/8 fd00::/8")
    assert [str(network) for network in load_settings().grounding_networks] == ["10.0.0.0/8", "fd00::/8"]


def test_all_that_a_version_says_can_be_asked_of_another_model() -> None:
    """So that a base is compared with the passages of the version that it is compared with."""
    said = GroundingSettings(
        vector_store_ids=("vs_1",), template="Read.\n{passages}\n{question}", max_passage_tokens=700,
        on_failure="fail_closed", timeout_s=0.5, score_threshold=0.3, filters={"type": "eq", "key": "a", "value": "b"},
        max_num_results=2,
    )  # fmt: skip
    asked = grounding_field(said.model_dump(mode="json"))
    check_grounding(asked, "grounding")
    ours, theirs = retrieval_options(asked, None), retrieval_options(None, said)
    assert ours is not None
    assert theirs is not None
    assert replace(ours, requested=False, provider_requested=False) == theirs
    webhook = grounding_field(GroundingSettings(provider="webhook").model_dump(mode="json"))
    check_grounding(webhook, "grounding")


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"template": "no place"}, "grounding.template"),
        ({"template": 3}, "grounding.template"),
        ({"max_passage_tokens": 15}, "grounding.max_passage_tokens"),
        ({"on_failure": "shrug"}, "grounding.on_failure"),
        ({"timeout_s": 0}, "grounding.timeout_s"),
        ({"timeout_s": 61}, "grounding.timeout_s"),
    ],
)
def test_a_member_that_is_not_allowed_is_named(value: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_grounding(value, "grounding")
    assert caught.value.param == param
