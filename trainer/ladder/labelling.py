"""The examples of the rung `distilled`: a teacher answers prompts that nobody has answered yet.

The asking is that of `hatrack data label` (`adapters.labelling`): each reply is in a journal before the next prompt is
asked, so a worker that was killed asks nothing twice, and refusals and answers that were cut are set aside. Like
everything in a ladder it goes through the gateway with the run's key.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

import httpx

from adapters.labelling.asking import (
    MAX_TOKENS,
    PATIENCE_S,
    Journal,
    Reply,
    Teacher,
    TeacherBusy,
    TeacherRefusesAll,
    ask_all,
)
from adapters.labelling.completion import (
    SERVED_BY,
    raise_if_for_later_or_for_the_prompt,
    read_completion,
    request_of,
)
from adapters.labelling.prompts import Prompt, PromptsInvalid, read_prompts
from adapters.labelling.result import Labelled, Outcome, sort_replies
from adapters.wording import counted
from trainer.data.format import Example
from trainer.data.prepare import MIN_EXAMPLES
from trainer.data.trained_examples import NormalizedExample, TrainedExamples
from trainer.errors import DataInvalid, DataTooSmall, GatewayRefused
from trainer.ladder.spec import PROMPTS, REPLIES, Labels, LadderPlan, LadderSpec
from trainer.runs.control import run_interruptible
from trainer.runs.directory import RunDirectory
from trainer.runs.failures import KEY_UNKNOWN

PARAM: Final = "unlabelled_file"
TEXT_SUFFIX: Final = ".txt"
ANSWERING: Final = httpx.Timeout(60, connect=5, read=600)
WRITTEN_EVERY_S: Final = 2.0
"""How often the file that says how far the teacher is, is written."""
WRITTEN_SHARE: Final = 0.05
"""Of the time, at most: sorting all replies of 100,000 prompts takes seconds."""


@dataclass(frozen=True, slots=True)
class UsablePrompts:
    """The prompts to ask the teacher, as JSONL, how many they are, and notes on what was left out."""

    content: bytes
    count: int
    notes: tuple[str, ...]


def usable_prompts(
    name: str, content: bytes, held_out: Sequence[Example], *, without_system: bool, limit: int | None
) -> UsablePrompts:
    """The prompts of a file that a rung may learn from.

    Prompts that repeat or nearly repeat a held-out question are left out: the rung is measured on those.

    Args:
        name: The file's name, for messages; one that ends with `.txt` has a prompt on each line.
        without_system: Leave system messages out, as they are left out of the examples.
        limit: The largest number, drawn by a hash of each prompt; None for all.

    Raises:
        DataInvalid, DataTooSmall: Lines are no prompts, or too few can be used.
    """
    try:
        read = read_prompts(content, as_text=name.endswith(TEXT_SUFFIX))
    except PromptsInvalid as error:
        invalid = DataInvalid(error.problems)
        invalid.param, invalid.message = PARAM, f"{name}: {error}"
        raise invalid from error
    prompts = _without_system(read.prompts) if without_system else list(read.prompts)
    known = TrainedExamples(NormalizedExample.example(example) for example in held_out)
    turns = [[(str(turn["role"]), str(turn["content"])) for turn in prompt.messages] for prompt in prompts]
    leaks = {match.index for match in known.leaks([NormalizedExample.of(each, "") for each in turns])}
    kept = [prompt for index, prompt in enumerate(prompts) if index not in leaks]
    notes = []
    if leaks:
        one = f"prompt of {name} repeats or nearly repeats a held-out question, and is left out"
        several = f"prompts of {name} repeat or nearly repeat held-out questions, and are left out"
        notes.append(counted(len(leaks), one, several))
    if limit is not None and len(kept) > limit:
        notes.append(f"quick: the teacher is asked {limit} of {len(kept)} prompts")
        drawn = {prompt.digest for prompt in sorted(kept, key=lambda prompt: prompt.digest)[:limit]}
        kept = [prompt for prompt in kept if prompt.digest in drawn]
    if len(kept) < MIN_EXAMPLES:
        left_out = f", {len(leaks)} of them repeat held-out questions" if leaks else ""
        small = DataTooSmall(
            f"{name} has {len(prompts)} different prompts{left_out}; a LoRA needs at least {MIN_EXAMPLES}."
        )
        small.param = PARAM
        raise small
    return UsablePrompts("".join(map(_line, kept)).encode(), len(kept), tuple(notes))


def _without_system(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without system messages, each once."""
    bare: dict[str, Prompt] = {}
    for prompt in prompts:
        turns = tuple(turn for turn in prompt.messages if turn["role"] != "system")
        bare.setdefault((own := replace(prompt, messages=turns)).digest, own)
    return list(bare.values())


def _line(prompt: Prompt) -> str:
    row: dict[str, Any] = {"messages": list(prompt.messages)}
    row |= {} if prompt.group is None else {"group": prompt.group}
    row |= {"filters": dict(prompt.filters)} if prompt.filters else {}
    return json.dumps(row, ensure_ascii=False) + "\n"


class GatewayTeacher:
    """Asks a teacher through the gateway; an async context manager, and an `adapters.labelling.asking.Ask`.

    Args:
        url, key: Of the gateway, and the run's.
        template_switches: `chat_template_kwargs` of requests to a teacher that the engine serves.
    """

    def __init__(self, url: str, key: str, *, connections: int, template_switches: Mapping[str, bool]) -> None:
        self._template_switches = dict(template_switches)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=ANSWERING,
            limits=httpx.Limits(max_connections=connections),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def __call__(self, teacher: Teacher, prompt: Prompt) -> Reply:
        """The teacher's reply to a prompt.

        Raises:
            TeacherBusy: It can be asked later.
            PromptRefused: It refuses this prompt.
            GatewayRefused: It refuses the run, or does not answer with a chat completion.
        """
        began = time.monotonic()
        path, body = request_of(teacher, prompt)
        if self._template_switches and not teacher.outside:
            body["chat_template_kwargs"] = self._template_switches
        try:
            response = await self._http.post(path, json=body)
        except httpx.TransportError as error:
            raise TeacherBusy(f"no answer: {str(error) or type(error).__name__}") from error
        try:
            value = response.json()
        except ValueError:
            value = None
        if not response.is_success:
            error_object = value.get("error") if isinstance(value, dict) else None
            details = error_object if isinstance(error_object, dict) else {}
            raise_if_for_later_or_for_the_prompt(response.status_code, details, response.headers)
            code, message = str(details.get("code")), str(details.get("message") or f"status {response.status_code}")
            raise GatewayRefused(response.status_code, code, message)
        try:
            return read_completion(
                value,
                served_by=response.headers.get(SERVED_BY),
                seconds=time.monotonic() - began,
                max_tokens=teacher.max_tokens,
            )
        except ValueError as error:
            raise GatewayRefused(response.status_code, "unexpected_answer", str(error)) from error


class Labelling:
    """Has the ladder's teacher answer the prompts of the run's directory.

    Args:
        instructions: The ladder's; for a teacher without a prompt of its own.
        check: Raises if the worker has to stop.
        write: Called with how far it is.
        patience_s: How long the teacher may be busy without answering anything, seconds.
    """

    def __init__(
        self,
        job: LadderSpec,
        plan: LadderPlan,
        instructions: str | None,
        directory: RunDirectory,
        check: Callable[[], None],
        write: Callable[[Labels], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._job, self._directory, self._check, self._write = job, directory, check, write
        self._patience_s = patience_s
        self._prompts = read_prompts(directory.path(PROMPTS).read_bytes()).prompts
        self._concurrency = max(1, min(job.concurrency, len(self._prompts)))
        self.teacher = teacher_of(job, plan, instructions)

    def run(self, key: str) -> tuple[Labels, Labelled]:
        """Ask what is not answered yet. ``key``: the run's.

        Returns:
            What came of it, with `error` if the teacher cannot be asked, and the replies.

        Raises:
            GatewayRefused: The run's key is no longer valid.
        """
        with Journal(self._directory.path(REPLIES)) as journal:
            error: str | None = None
            try:
                asyncio.run(run_interruptible(self._ask(journal, key), self._check))
            except (TeacherBusy, TeacherRefusesAll) as failed:
                reason = "stayed busy" if isinstance(failed, TeacherBusy) else "refuses every prompt"
                error = f"the teacher {self.teacher.name} {reason} ({failed.message})"
            except GatewayRefused as refused:
                if refused.status == KEY_UNKNOWN:
                    raise
                error = f"the teacher {self.teacher.name} could not be asked: {refused.message}"
            labelled = self._labelled(journal)
        labels = self._labels(labelled)
        if error is None and labels.answered < MIN_EXAMPLES:
            error = (
                f"the teacher {self.teacher.name} answered {labels.answered} of {labels.prompts} prompts "
                f"({labels.refused} refused, {labels.truncated} cut); a LoRA needs at least {MIN_EXAMPLES} answers"
            )
        return labels.model_copy(update={"error": error}), labelled

    async def _ask(self, journal: Journal, key: str) -> None:
        write_at = 0.0

        def on_progress(_done: int, _total: int) -> None:
            nonlocal write_at
            began = time.monotonic()
            if began >= write_at:
                self._write(self._labels(self._labelled(journal)))
                ended = time.monotonic()
                write_at = ended + max(WRITTEN_EVERY_S, (ended - began) / WRITTEN_SHARE)

        asker = GatewayTeacher(
            self._job.gateway,
            key,
            connections=self._concurrency,
            template_switches=self._job.template_switches,
        )
        async with asker as ask:
            await ask_all(
                *(self._prompts, self.teacher, journal, ask),
                concurrency=self._concurrency,
                on_progress=on_progress,
                patience_s=self._patience_s,
            )

    def _labelled(self, journal: Journal) -> Labelled:
        return sort_replies(self._prompts, self.teacher, journal)

    def _labels(self, labelled: Labelled) -> Labels:
        spent, prices = labelled.spent, self._job.teacher_prices
        is_metered = self.teacher.outside and not spent.unmetered
        seconds = sum(each.reply.seconds for each in labelled.prompts) / self._concurrency
        return Labels(
            teacher=self.teacher.name,
            outside=self.teacher.outside,
            prompts=len(self._prompts),
            answered=len(labelled.of(Outcome.ANSWERED)),
            refused=len(labelled.of(Outcome.REFUSED)),
            truncated=len(labelled.of(Outcome.TRUNCATED)),
            prompt_tokens=spent.prompt,
            completion_tokens=spent.completion,
            engine_seconds=0.0 if self.teacher.outside else round(seconds, 3),
            money=prices.of(spent.prompt, spent.completion) if is_metered and prices is not None else None,
        )


def teacher_of(job: LadderSpec, plan: LadderPlan, instructions: str | None) -> Teacher:
    """How the ladder's teacher is asked: a version as it is served, greedily; the base and an outside endpoint, which
    have no prompt of their own, with the ladder's instructions."""
    reference = job.context_of_request.teacher
    assert reference is not None  # noqa: S101 - there are no prompts without a teacher
    is_version = not reference.outside and reference.name != job.base_name
    max_tokens = max(plan.max_tokens, plan.teacher_max_tokens)
    return Teacher(
        reference.name,
        reference.outside,
        None if is_version else instructions,
        # an outside model's limit may have to hold its thinking
        max(max_tokens, MAX_TOKENS) if reference.outside else max_tokens,
        None if reference.outside else 0.0,
    )


def training_file(labelled: Labelled) -> bytes:
    """The answers as a JSONL file of chat examples, in the order of the prompts."""
    rows = (each.training_row() for each in labelled.of(Outcome.ANSWERED))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
