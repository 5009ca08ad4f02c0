"""What is counted of a request, and that what clients send cannot make the metrics grow."""

from __future__ import annotations

import tracemalloc
from types import MappingProxyType

import pytest

from service.http.stream import TokenUsage
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot, Target
from service.telemetry.account import BASE, MAX_CODES, NONE, OTHER, SWEEP_AFTER, MetricsAccount
from service.telemetry.record import Accounts, Outcome, Record
from tests.unit.service.inference.fakes import catalog, version
from tests.unit.service.telemetry.support import BASE_TARGET, CHAT, VOICE, caller, read, record, refused, value

OF_VOICE = {"project": "shop", "adapter": "voice", "version": "3"}


def account(max_series: int = 100) -> MetricsAccount:
    return MetricsAccount(catalog(), max_series)


def target(name: str, version: int = 1) -> Target:
    return Target(name, "e" * 64, name, version, "e" * 64)


def test_a_streamed_answer_is_counted_in_every_metric() -> None:
    counting = account()
    counting(record())
    samples = read(counting.families())
    assert value(samples, "hatrack_requests_total", route=CHAT, outcome="ok", **OF_VOICE) == 1
    assert value(samples, "hatrack_prompt_tokens_total", **OF_VOICE) == 10
    assert value(samples, "hatrack_cached_prompt_tokens_total", **OF_VOICE) == 4
    assert value(samples, "hatrack_completion_tokens_total", **OF_VOICE) == 5
    assert value(samples, "hatrack_time_to_first_token_seconds_sum", **OF_VOICE) == 0.3
    assert value(samples, "hatrack_time_to_first_token_seconds_bucket", le="0.2", **OF_VOICE) == 0
    assert value(samples, "hatrack_time_to_first_token_seconds_bucket", le="0.35", **OF_VOICE) == 1
    assert value(samples, "hatrack_inter_token_seconds_bucket", le="0.035", **OF_VOICE) == 2
    assert value(samples, "hatrack_inter_token_seconds_count", **OF_VOICE) == 3
    assert value(samples, "hatrack_queue_seconds_bucket", le="0.05", **OF_VOICE) == 1
    assert value(samples, "hatrack_request_duration_seconds_sum", route=CHAT) == 1.5


def test_the_engines_time_is_counted_for_the_version_whatever_came_of_the_request() -> None:
    counting = account(max_series=2)
    who = caller("default")
    counting(record(caller=who, engine_s=0.5))
    counting(record(caller=who, outcome="left", usage=None, engine_s=0.25))
    counting(record(caller=who, target=BASE_TARGET, engine_s=4.0))
    counting(record(caller=who, target=target("third"), engine_s=1.0))  # beyond the maximum
    counting(record(caller=who, target=target("fourth"), engine_s=2.0))
    counting(refused(caller=who))
    samples = read(counting.families())
    counted = {labels: seconds for (name, labels), seconds in samples.items() if name == "hatrack_engine_seconds_total"}
    of_version = [(dict(labels), seconds) for labels, seconds in counted.items()]
    assert {(labels["adapter"], labels["version"]): seconds for labels, seconds in of_version} == {
        ("voice", "3"): 0.75,
        (BASE, ""): 4.0,
        (OTHER, ""): 3.0,
    }


def test_an_answer_in_one_piece_has_no_time_to_first_token() -> None:
    counting = account()
    counting(record(stream=False, gaps=[]))
    assert not [name for name, _ in read(counting.families()) if name.startswith("hatrack_time_to_first_token")]


@pytest.mark.parametrize("outcome", ["refused", "failed", "cut", "left"])
def test_what_did_not_end_well_is_counted_by_outcome_and_code(outcome: Outcome) -> None:
    counting = account()
    counting(record(outcome=outcome, code="engine_cut", usage=None))
    samples = read(counting.families())
    assert value(samples, "hatrack_requests_total", outcome=outcome, **OF_VOICE) == 1
    assert value(samples, "hatrack_errors_total", route=CHAT, code="engine_cut") == 1


def test_a_fault_names_its_adapter() -> None:
    counting = account()
    counting(record(outcome="failed", code="adapter_not_finite", usage=None))
    counting(record(outcome="failed", code="timeout", usage=None))
    samples = read(counting.families())
    assert value(samples, "hatrack_adapter_faults_total", code="adapter_not_finite", **OF_VOICE) == 1
    assert value(samples, "hatrack_adapter_faults_total") == 1


def test_the_base_and_requests_without_a_model_have_names_that_no_adapter_can_have() -> None:
    counting = account()
    counting(record(target=BASE_TARGET))
    counting(refused())
    counting(refused("invalid_api_key", caller=None))
    samples = read(counting.families())
    assert value(samples, "hatrack_requests_total", project="shop", adapter=BASE) == 1
    assert value(samples, "hatrack_requests_total", project="shop", adapter=NONE) == 1
    assert value(samples, "hatrack_requests_total", project=NONE, adapter=NONE) == 1


def test_two_projects_with_the_same_adapter_are_two_series() -> None:
    counting = account()
    counting(record())
    counting(record(caller=caller("bank"), usage=TokenUsage(7, 1)))
    samples = read(counting.families())
    assert value(samples, "hatrack_prompt_tokens_total", project="shop", adapter="voice") == 10
    assert value(samples, "hatrack_prompt_tokens_total", project="bank", adapter="voice") == 7


@pytest.mark.slow
def test_a_hundred_thousand_names_leave_labels_and_memory_bounded() -> None:
    counting = account()
    counting(refused())
    shown = len(read(counting.families()))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(100_000):
        counting(refused(request_id=f"r{number}"))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    samples = read(counting.families())
    assert len(samples) == shown
    assert value(samples, "hatrack_requests_total", adapter=NONE) == 100_001
    assert grown < 64_000, "bytes per hundred thousand requests"


def test_past_the_bound_adapters_and_projects_are_counted_as_other() -> None:
    known = catalog()
    entries = {("shop", f"a{number}"): AdapterEntry(f"a{number}", 1, {1: version(1)}, {}) for number in range(40)}
    known.replace(CatalogSnapshot(entries))
    counting = MetricsAccount(known, max_series=5)
    for number in range(40):
        counting(record(target=target(f"a{number}")))
        counting(refused(caller=caller(f"p{number}")))
    samples = read(counting.families())
    named = {dict(labels)["adapter"] for name, labels in samples if name == "hatrack_requests_total"}
    assert named == {"a0", "a1", "a2", "a3", "a4", NONE, OTHER}
    assert value(samples, "hatrack_requests_total", project=OTHER, adapter=OTHER) == 2 * 35
    assert value(samples, "hatrack_prompt_tokens_total") == 400, "nothing is lost"


def test_error_codes_are_bounded() -> None:
    counting = account()
    for number in range(MAX_CODES + 50):
        counting(refused(f"code_{number}"))
    samples = read(counting.families())
    assert sum(name == "hatrack_errors_total" for name, _ in samples) == MAX_CODES + 1
    assert value(samples, "hatrack_errors_total", code=OTHER) == 50


def test_versions_that_are_gone_make_room_for_others() -> None:
    known: Catalog = catalog()
    counting = MetricsAccount(known, max_series=2)
    default = caller("default")
    counting(record(caller=default))  # voice@3, which the catalog knows
    counting(record(caller=default, target=target("deleted")))
    counting(record(caller=default, target=target("younger")))
    samples = read(counting.families())
    named = {dict(labels)["adapter"] for name, labels in samples if name == "hatrack_requests_total"}
    assert named == {"voice", "younger"}
    known.replace(CatalogSnapshot(MappingProxyType({})))  # all are gone, but nobody looks for that at every request
    for _ in range(SWEEP_AFTER):
        counting(record(caller=default, target=target("late")))
    assert value(read(counting.families()), "hatrack_requests_total", adapter=OTHER) == SWEEP_AFTER
    counting(record(caller=default, target=target("late")))
    assert value(read(counting.families()), "hatrack_requests_total", adapter="late") == 1


def test_requests_may_come_while_the_metrics_are_written() -> None:
    counting = account()
    for number in range(30):
        counting(record(target=target(f"a{number}")))
    for number, _ in enumerate(counting.families()):
        counting(record(target=target(f"b{number}"), outcome="cut", code=f"c{number}"))
    assert value(read(counting.families()), "hatrack_requests_total", outcome="ok", adapter="a0") == 1


def test_a_version_without_weights_is_counted_under_its_own_flow() -> None:
    counting = account()
    default = caller("default")
    for asked in (Target("younger", "smol", "younger", 1, flow="default/younger@1"), BASE_TARGET, VOICE):
        counting(record(caller=default, target=asked))
    assert dict(counting.flows()) == {
        ("default", "younger", "1"): "default/younger@1",
        ("default", BASE, ""): None,
        ("default", "voice", "3"): VOICE.digest,
    }
    assert [digest for _, digest in counting.targets()] == [None, None, VOICE.digest]


def test_a_deleted_version_keeps_its_counters_and_loses_its_gauges() -> None:
    known: Catalog = catalog()
    counting = MetricsAccount(known, 100)
    counting(record(caller=caller("default")))
    assert dict(counting.flows()) == {("default", "voice", "3"): VOICE.digest}
    known.replace(CatalogSnapshot(MappingProxyType({})))
    assert value(read(counting.families()), "hatrack_requests_total", adapter="voice") == 1
    assert counting.flows() == []
    assert counting.targets() == []


def test_one_account_that_raises_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def broken(one: Record) -> None:
        raise ValueError("broken")

    accounts = Accounts(lambda one: told.append("first"), broken, lambda one: told.append("last"))
    accounts(record())
    assert told == ["first", "last"]
    assert [line.getMessage() for line in caplog.records] == ["an account failed"]
