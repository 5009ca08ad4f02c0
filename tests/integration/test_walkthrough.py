"""`make walkthrough` in a short form: the steps that train nothing, on the engine that all tests share."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.conftest import REPO
from tests.support.gateway import Gateway
from trainer.samples import MARLOW

STEPS = ("report", "policy", "fence", "compare")
SHORT = ("--temperature", "0", "--max-tokens", "40")


def load_walkthrough() -> ModuleType:
    """`deploy/walkthrough.py`, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("walkthrough", REPO / "deploy" / "walkthrough.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


walkthrough = load_walkthrough()


class InProcess(walkthrough.Walkthrough):  # type: ignore[misc, name-defined]
    """Runs the same commands in this process, as each process takes a second or two to begin; keeps what they print."""

    printed: ClassVar[list[tuple[tuple[str, ...], str]]] = []

    def run(self, *arguments: str, answers: tuple[int, ...] = (0,)) -> None:
        result = self._invoke(*arguments)
        assert result.exit_code in answers, result.output
        self.printed.append((arguments, result.output))

    def read(self, *arguments: str) -> Any:
        result = self._invoke(*arguments, "--json")
        if result.exit_code == 0:
            return json.loads(result.stdout)
        assert "not_found" in result.stderr, result.output
        return None

    def _invoke(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env=self._environment, catch_exceptions=False)


def printed_by(command: str, *words: str) -> list[str]:
    """What each of these commands printed, in order."""
    ran = [(arguments, text) for arguments, text in InProcess.printed if arguments[0] == command]
    return [text for arguments, text in ran if set(words) <= set(arguments)]


@pytest.fixture(scope="module", autouse=True)
def steps(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Takes the steps; afterwards the gateway is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in gateway.environment.items():
            patch.setenv(name, value)
        patch.setattr(walkthrough, "Walkthrough", InProcess)
        patch.setattr(walkthrough, "GREEDY", SHORT)
        patch.setattr(walkthrough, "SHOWN_TICKETS", 1)
        walkthrough.main([*STEPS, "--home", str(tmp_path_factory.mktemp("walkthrough"))])
    yield
    InProcess.printed.clear()
    with gateway.http() as client:
        for store in client.get("/v1/vector_stores").json()["data"]:
            if store["name"] in (walkthrough.POLICIES, walkthrough.ORDERS):
                assert client.delete(f"/v1/vector_stores/{store['id']}").status_code == 200
        for name in (walkthrough.NAME, walkthrough.DESK):
            assert client.delete(f"/v1/adapters/{name}?force=true").status_code == 204


def test_the_report_finds_1000_examples_and_nothing_wrong_with_them() -> None:
    [report] = printed_by("data")
    assert "1,000 examples" in report
    assert "near-duplicate" not in report
    assert "warning" not in report


def test_a_policy_that_changes_is_what_the_next_answer_is_given(gateway: Gateway) -> None:
    before, after = printed_by("chat", walkthrough.POLICIES)
    assert "[1] gift-wrapping.md" in before
    assert "[1] gift-wrapping.md" in after
    assert walkthrough.OLD not in after
    assert walkthrough.NEW not in before
    with gateway.http() as client:
        [store] = [
            store["id"]
            for store in client.get("/v1/vector_stores").json()["data"]
            if store["name"] == walkthrough.POLICIES
        ]
        asked = {"grounding": {"vector_store_ids": [store]}, "max_tokens": 1}
    cited = "\n".join(
        citation["text"]
        for citation in gateway.chat(walkthrough.NAME, walkthrough.QUESTION, **asked).json()["citations"]
    )
    assert walkthrough.NEW in cited
    assert walkthrough.OLD not in cited


def test_who_asks_for_anothers_order_gets_nothing_of_it() -> None:
    own, strangers = printed_by("chat", walkthrough.ORDERS)
    assert f"{walkthrough.OWNER}.csv" in own
    assert walkthrough.OWNER not in strangers
    with (MARLOW / "store" / "orders" / f"{walkthrough.OWNER}.csv").open(encoding="utf-8", newline="") as file:
        [order] = [row for row in csv.DictReader(file) if row["order"] in walkthrough.FENCED]
    assert not [value for name, value in order.items() if name != "order" and value and value in strangers]


def test_who_does_not_say_who_asks_is_refused() -> None:
    [refused] = printed_by("chat", walkthrough.DESK)
    assert "`customer`" in refused
    assert walkthrough.OWNER not in refused


def test_base_and_voice_answer_the_same_ticket(gateway: Gateway) -> None:
    ticket = json.loads((MARLOW / "heldout.jsonl").read_text("utf-8").splitlines()[0])["messages"][0]["content"]
    [base], [voice] = printed_by("chat", gateway.base_name(), ticket), printed_by("chat", walkthrough.NAME, ticket)
    assert base.strip()
    assert voice.strip()
    assert base != voice
