"""What passes, is refused, shared, remembered, limited and cleaned up, with the real trial process and xgrammar."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.config import Settings
from service.errors import BadRequest, RateLimited, Unavailable
from service.structured import checker, projects
from service.structured.checker import StructuredOutputs
from service.structured.process import Trial, TrialProcess, TrialUnavailable
from service.structured.spec import Spec
from tests.unit.service.inference.fakes import until

SLOW = "root ::= s\ns ::= s s | [a-z]\n"
"""Small by its text, and never decoded: every way to split the answer is a way to read it."""
MANY_WAYS = Spec("regex", "([a-z]{1}.{1,1}|[a-z]{2}.{1,2})+", "structured_outputs.regex")
PATIENCE_S = 300.0


def regex(pattern: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": pattern}}


def grammar(text: str) -> dict[str, Any]:
    return {"structured_outputs": {"grammar": text}}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}


async def passes(outputs: StructuredOutputs, body: dict[str, Any], project: str = "p") -> None:
    async with outputs.admitted(body, project):
        return


@pytest.fixture(scope="module")
async def process(base_dir: Path) -> AsyncIterator[TrialProcess]:
    started = TrialProcess(base_dir, cpu_s=1.0)
    yield started
    await started.close()


@pytest.fixture
def outputs(process: TrialProcess) -> StructuredOutputs:
    """Masks may take what they take here: how fast this machine is decides nothing."""
    return StructuredOutputs(compile_s=1.0, token_ms=1000.0, wait_s=PATIENCE_S, trials=process)


class Counting:
    """A process that answers when it is told to; for what is about the requests and not about xgrammar."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.asked: list[str] = []
        self.cancelled = 0
        self.free = asyncio.Event()

    async def run(self, spec: Spec, _parts: object) -> Trial:
        self.asked.append(spec.text)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.trial


def counted(trial: Trial, **more: Any) -> tuple[StructuredOutputs, Counting]:
    counting = Counting(trial)
    options = {"compile_s": 2.0, "token_ms": 4.0, "wait_s": PATIENCE_S, **more}
    return StructuredOutputs(trials=counting, **options), counting  # type: ignore[arg-type]


@asynccontextmanager
async def running(*coroutines: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


HONEST: list[dict[str, Any]] = [
    regex(r"\d{3}-\d{4}"),
    regex(r"(\d{1,3}\.){3}\d{1,3}"),
    schema({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}),
    schema({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"}}}),
    schema({"$defs": {"n": {"properties": {"c": {"items": {"$ref": "#/$defs/n"}}}}}, "$ref": "#/$defs/n"}),
    schema({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "maxItems": 3}),
    {"structured_outputs": {"choice": ["yes", 'no "\n']}},
    grammar('root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "(" expr ")"\n'),
    grammar('start: expr\nexpr: term ("+" term)*\nterm: /[0-9]+/ | "(" expr ")"\n'),
    {
        "response_format": {
            "type": "structural_tag",
            "structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}],
            "triggers": ["<f>"],
        }
    },
]


@pytest.mark.parametrize("body", HONEST)
async def test_what_honest_callers_send_passes(outputs: StructuredOutputs, body: dict[str, Any]) -> None:
    await passes(outputs, body)
    assert outputs.counts.outcomes == {"passed": 1, "refused": 0, "untried": 0}


@pytest.mark.parametrize("kind", ["compile", "decode"])
async def test_what_takes_too_long_is_refused_whatever_its_size(outputs: StructuredOutputs, kind: str) -> None:
    wide = {"anyOf": [{"type": "string", "minLength": n, "maxLength": 128} for n in range(1, 90)]}
    body = schema(wide) if kind == "compile" else grammar(SLOW)
    with pytest.raises(BadRequest, match="more than 1 s of CPU time") as caught:
        await passes(outputs, body)
    assert caught.value.code == "grammar_too_complex"
    assert caught.value.param in ("response_format.json_schema.schema", "structured_outputs.grammar")
    assert f"`{caught.value.param}`" in caught.value.message
    assert "HATRACK_STRUCTURED_COMPILE_S" in caught.value.message


async def test_the_issues_expression_is_stopped_by_the_trial_as_well(process: TrialProcess) -> None:
    """The static bound knows it; the trial does not need to be told."""
    assert (await process.run(MANY_WAYS, [])).outcome == "slow"


async def test_what_hides_behind_a_long_beginning_is_found(outputs: StructuredOutputs) -> None:
    hidden = 'root ::= "' + "x" * 3000 + '" s\n' + SLOW.partition("\n")[2]
    with pytest.raises(BadRequest, match="CPU time"):
        await passes(outputs, grammar(hidden))


FREE = {"type": "string"}
LONG = {"type": "string", "pattern": "^.{0,200}$"}
HIDDEN: list[dict[str, Any]] = [
    schema(
        {
            "type": "object",
            "properties": {**{f"p{n}": FREE for n in range(3)}, "z": LONG},
            "required": [*(f"p{n}" for n in range(3)), "z"],
        }
    ),
    {"structured_outputs": {"regex": "[a-z]{900}!.{0,200}"}},
    grammar('root ::= "' + "x" * 3000 + '" [^"]{0,200}\n'),
    grammar('start: "' + "x" * 3000 + '" /[^"]{0,200}/\n'),
]


@pytest.mark.slow
@pytest.mark.parametrize("body", HIDDEN)
async def test_a_dear_mask_behind_a_free_beginning_is_measured(base_dir: Path, body: dict[str, Any]) -> None:
    """What is dear takes about 100 times what its beginning takes; the bound here is that of no machine."""
    patient = TrialProcess(base_dir, cpu_s=30.0)
    try:
        spec = checker.specs_of(body)[0]
        blind = await patient.run(spec, [])
        seeing = await patient.run(spec, checker.bounds.check(spec, checker.TRIED))
    finally:
        await patient.close()
    assert blind.outcome == seeing.outcome == "ok"
    assert seeing.token_ms > 10 * blind.token_ms


async def test_an_invalid_one_is_refused_with_the_reason(outputs: StructuredOutputs) -> None:
    with pytest.raises(BadRequest, match="parenthesis is not closed") as caught:
        await passes(outputs, regex("(a"))
    assert caught.value.code == "invalid_grammar"


async def test_a_slow_mask_is_refused(process: TrialProcess) -> None:
    """Against a bound below what any machine needs."""
    strict = StructuredOutputs(compile_s=2.0, token_ms=1e-6, wait_s=PATIENCE_S, trials=process)
    with pytest.raises(BadRequest, match="HATRACK_STRUCTURED_TOKEN_MS"):
        await passes(strict, HONEST[2])


async def test_a_trial_out_of_memory_ends_alone(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.structured.process.MEMORY_MIB", 16)
    small = TrialProcess(base_dir, cpu_s=20.0)
    outputs = StructuredOutputs(compile_s=20.0, token_ms=1000.0, wait_s=PATIENCE_S, trials=small)
    try:
        large = {"structured_outputs": {"choice": [f"{n} of the choices {'x' * 200}" for n in range(9000)]}}
        # native code that gets no memory throws, aborts or crashes, as it happens to be written
        with pytest.raises(BadRequest, match=r"more memory|makes the grammar compiler crash"):
            await passes(outputs, large)
        pid = small.pid
        assert (await small.run(Spec("regex", "a", "f"), [])).outcome == "ok"
        assert small.pid == pid
    finally:
        await small.close()


async def test_a_killed_process_is_replaced(process: TrialProcess, outputs: StructuredOutputs) -> None:
    await passes(outputs, regex("a1"))
    first, starts = process.pid, process.starts
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: process.pid is None)
    await passes(outputs, regex("a2"))
    assert process.pid not in (None, first)
    assert process.starts == starts + 1


async def test_who_leaves_takes_the_work_along(process: TrialProcess, outputs: StructuredOutputs) -> None:
    await process.start()
    assert process.pid is not None
    forked = psutil.Process(process.pid).children
    async with running(passes(outputs, grammar(SLOW))) as (task,):
        await until(forked)
        task.cancel()
        await until(lambda: not forked())
    assert process.pid is not None


async def test_a_process_that_cannot_start_leaves_the_stricter_bound(tmp_path: Path) -> None:
    broken = TrialProcess(tmp_path, cpu_s=2.0)
    outputs = StructuredOutputs(compile_s=2.0, token_ms=4.0, wait_s=PATIENCE_S, trials=broken)
    async with outputs.running():
        await passes(outputs, regex("[a-z]{1,20}"))
        with pytest.raises(BadRequest, match="at most 400"):
            await passes(outputs, regex("[a-z]{2}" * 190 + "[a-z]{90}"))
        assert outputs.trial_state == "down"
        assert outputs.counts.outcomes == {"untried": 2, "passed": 1, "refused": 1}
        assert broken.starts == 1
        with pytest.raises(TrialUnavailable):
            await broken.start()


async def test_without_xgrammar_there_is_the_stricter_bound_alone() -> None:
    outputs = StructuredOutputs(compile_s=2.0, token_ms=4.0, wait_s=PATIENCE_S)
    assert outputs.trial_state == "off"
    async with outputs.running():
        await passes(outputs, HONEST[0])
        with pytest.raises(BadRequest, match="at most 400"):
            await passes(outputs, regex("(abc){1,200}"))


def test_another_backend_of_the_engine_is_not_tried_against_xgrammar(base_dir: Path, tmp_path: Path) -> None:
    def state(*flags: str) -> str:
        settings = Settings(home=tmp_path, base_model=str(base_dir), engine_args=flags)
        return StructuredOutputs.from_settings(settings).trial_state

    assert state() == state("--structured-outputs-config.backend", "xgrammar") == "down"  # not started yet
    assert state("--structured-outputs-config.backend", "guidance") == "off"


async def test_verdicts_are_remembered_and_equal_ones_in_flight_shared() -> None:
    outputs, counting = counted(Trial("ok", token_ms=0.1))
    same = [passes(outputs, body) for body in (regex("a"), regex("a"), {"structured_outputs": {"regex": "a"}})]
    async with running(*same) as tasks:
        await until(lambda: counting.asked)
        counting.free.set()
        await asyncio.gather(*tasks)
    await passes(outputs, regex("a"))
    await passes(outputs, regex("a"), project="another")
    assert counting.asked == ["a"]


async def test_a_refusal_is_remembered_for_a_while_and_names_each_callers_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs, counting = counted(Trial("slow"))
    counting.free.set()
    for body, param in (
        ({"structured_outputs": {"json": {"type": "object"}}}, "structured_outputs.json"),
        (schema({"type": "object"}), "response_format.json_schema.schema"),
    ):
        with pytest.raises(BadRequest, match=f"`{param}`") as caught:
            await passes(outputs, body)
        assert caught.value.param == param
    assert len(counting.asked) == 1
    monkeypatch.setattr(checker, "REFUSAL_TTL_S", -1.0)
    for _ in range(2):
        with pytest.raises(BadRequest):
            await passes(outputs, regex("b"))
    assert len(counting.asked) == 3


async def test_one_of_two_who_share_may_leave() -> None:
    outputs, counting = counted(Trial("ok"))
    async with running(passes(outputs, regex("a")), passes(outputs, regex("a"))) as (first, second):
        await until(lambda: counting.asked)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        counting.free.set()
        await second
    assert counting.cancelled == 0


async def test_who_comes_as_the_last_one_leaves_is_served() -> None:
    outputs, counting = counted(Trial("ok"))
    async with running(passes(outputs, regex("a"))) as (first,):
        await until(lambda: counting.asked)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        counting.free.set()
        await passes(outputs, regex("a"))
    assert counting.cancelled == 1
    assert counting.asked == ["a", "a"]


async def test_a_project_has_few_trials_at_once_and_others_do_not_wait_for_them() -> None:
    outputs, counting = counted(Trial("ok"))
    async with running(*(passes(outputs, regex("a" * n), "greedy") for n in range(1, 10))):
        await until(lambda: len(counting.asked) == projects.MAX_CONCURRENT_PER_PROJECT)
        async with running(passes(outputs, regex("b"), "other")):
            await until(lambda: "b" in counting.asked)
        assert len(counting.asked) == projects.MAX_CONCURRENT_PER_PROJECT + 1


async def test_only_so_many_of_a_project_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "TRIALS_WAITING_PER_PROJECT", 3)
    outputs, counting = counted(Trial("ok"))
    async with running(*(passes(outputs, regex("a" * n)) for n in range(1, 4))):
        await until(lambda: len(counting.asked) == projects.MAX_CONCURRENT_PER_PROJECT)
        with pytest.raises(RateLimited) as caught:
            await passes(outputs, regex("b"))
        assert caught.value.code == "too_many_grammars"
        assert caught.value.headers["retry-after"]


async def test_nobody_waits_beyond_the_deadline() -> None:
    outputs, counting = counted(Trial("ok"), wait_s=0.01)
    with pytest.raises(Unavailable) as caught:
        await passes(outputs, regex("a"))
    assert caught.value.code == "queue_timeout"
    await until(lambda: counting.cancelled == 1)


async def test_a_project_that_has_had_its_share_waits_and_others_do_not() -> None:
    outputs, counting = counted(Trial("slow", cpu_s=1000.0))
    counting.free.set()
    with pytest.raises(BadRequest):
        await passes(outputs, regex("a"), "greedy")
    async with running(passes(outputs, regex("b"), "greedy")) as (task,):
        with pytest.raises(BadRequest):
            await passes(outputs, regex("c"), "other")
        assert counting.asked == ["a", "c"]
        assert not task.done()


async def test_the_masks_of_a_projects_requests_are_bounded_together() -> None:
    outputs, counting = counted(Trial("ok", token_ms=1.5))
    counting.free.set()
    inside, leave = [], asyncio.Event()

    async def decode(project: str, **more: Any) -> None:
        async with outputs.admitted(regex("a") | more, project):
            inside.append(project)
            await leave.wait()

    async with running(*(decode("p") for _ in range(4)), decode("other", n=9)) as tasks:
        await until(lambda: len(inside) == 3)  # two of the project, and the other's, which alone is beyond the bound
        assert sorted(inside) == ["other", "p", "p"]
        leave.set()
        await asyncio.gather(*tasks)
    assert len(inside) == 5
    assert not len(outputs._projects), "what is over leaves nothing behind"


async def test_what_the_engine_forgets_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MAX_COMPILED_BYTES", 100)
    outputs, counting = counted(Trial("ok", size=60))
    counting.free.set()
    for pattern in ("a", "b", "a"):
        await passes(outputs, regex(pattern))
    assert counting.asked == ["a", "b", "a"]


async def test_a_process_that_fails_while_it_is_closed_is_ended(tmp_path: Path) -> None:
    def ours() -> set[int]:
        return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}

    before = ours()
    broken = TrialProcess(tmp_path, cpu_s=2.0)
    starting = asyncio.ensure_future(broken.start())
    while not broken._failure:  # noqa: ASYNC110 (it has no event for it)
        await asyncio.sleep(0)
    await broken.close()
    await asyncio.gather(starting, return_exceptions=True)
    assert ours() <= before
