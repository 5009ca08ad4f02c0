"""Training prompts with retrieved passages, rendered by the gateway's own hook.

A version that is served with passages must be trained with them: on prompts without any it learns to answer from
memory, and is then judged on prompts of a kind that it has never seen. What the hook has rendered is kept in the job's
directory, so that a job that resumes trains on the same prompts although the stores may have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from adapters.dataset.chat import GROUP
from adapters.wording import counted
from trainer.data.format import Example, Message
from trainer.errors import DataInvalid, Problem
from trainer.evaluate.arms import EVERYONES, GROUP_REQUIRED, joined_filters, outside_group, required_filters
from trainer.finetune.spec import PASSAGES, TrainingPlan
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

REPORT_EVERY: Final = 200


def passages_for(
    plan: TrainingPlan | None,
    grounding: Mapping[str, Any] | None,
    model: str,
    directory: RunDirectory,
    gateway: Gateway,
) -> TrainingPassages | None:
    """What puts passages into a job's training prompts; None if nothing is retrieved for them.

    Args:
        plan: The job's, once it is made; one of an earlier release may have a grounding and train without passages.
        grounding: What the new version will be served with, for a job that has no plan yet.
        model: The base's name.
    """
    if plan is not None:
        grounding = plan.grounding if plan.trained_with_passages else None
    if not grounding:
        return None
    directory.emit_event("retrieving the passages of the training prompts, as in serving")

    def report(count: int) -> None:
        directory.emit_event(f"{counted(count, 'prompt has its', 'prompts have their')} passages")

    return TrainingPassages(directory.path(PASSAGES), gateway, model, grounding, report)


class TrainingPassages:
    """Puts passages into the prompt of an example, as the gateway does in serving: into its last question, or as turns
    before the conversation.

    An example with a `group` is shown no document whose attribute `group` has the same value: so a store of the
    training examples themselves does not show an example its own answer. Its `filters` are sent as a request
    would send them: it is shown what its own customer would be shown.

    Args:
        path: The file that keeps what was rendered, one JSON object per line.
        model: The base's name.
        grounding: The version's `settings.grounding`.
        report: Called with the number of rendered prompts now and then.
    """

    def __init__(
        self,
        path: Path,
        gateway: Gateway,
        model: str,
        grounding: Mapping[str, Any],
        report: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._path = path
        self._gateway = gateway
        self._model = model
        self._grounding = {name: value for name, value in grounding.items() if value is not None}
        self._report = report
        self._known = _read(path)

    def __call__(self, example: Example, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation with its passages.

        Only the last answer is trained: in serving every answer is the last one, and the questions before it have no
        passages.

        Args:
            messages: With the system message that the version will have.

        Raises:
            DataInvalid: The conversation does not end with a question and its answer, or has tools; or the example
                gives no value of a required filter, or has a `group` where a filter of that name is required.
            GatewayRefused, GatewayUnreachable: The hook did not answer.
        """
        *before, answer = messages
        if example.uses_tools or not before or before[-1].role != "user":
            place = f"messages[{len(messages) - 1}]"
            reason = f"{place}: with `grounding`, an example must end with a question and its answer, and have no tools"
            raise DataInvalid([Problem(example.line, reason)])
        if example.group is not None and GROUP in required_filters(self._grounding):
            raise DataInvalid([Problem(example.line, f"it has a `{GROUP}`, and {GROUP_REQUIRED}")])
        missing = [name for name in required_filters(self._grounding) if name not in example.filters]
        if missing:
            reason = f'no value of the required filter `{missing[0]}`: add "filters": {{"{missing[0]}": …}} to the line'
            raise DataInvalid([Problem(example.line, f"{reason}; {EVERYONES}")])
        prompt = self._prompt(example, before)
        return (*(Message(each["role"], each["content"], trained=False) for each in prompt), answer)

    def _prompt(self, example: Example, before: list[Message]) -> list[Any]:
        """The messages that the hook makes of those before the answer."""
        sent = [{"role": message.role, "content": message.content} for message in before]
        asked = [example.group, sent, dict(example.filters)] if example.filters else [example.group, sent]
        key = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()
        if key not in self._known:
            prompt = self._gateway.rendered(self._model, sent, self._request(example))
            self._known[key] = {"messages": prompt}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "messages": prompt}, ensure_ascii=False) + "\n")
            if len(self._known) % REPORT_EVERY == 0:
                self._report(len(self._known))
        kept = self._known[key]
        if "question" in kept:  # of an earlier release, which kept the question alone: nothing else was changed
            return [*sent[:-1], {**sent[-1], "content": kept["question"]}]
        return list(kept["messages"])

    def _request(self, example: Example) -> dict[str, Any]:
        # without passages although the store has some, the prompt would be another one than in serving: rather wait
        grounding = self._grounding | {"on_failure": "fail_closed"}
        if example.filters:
            grounding["filters"] = joined_filters(example.filters, grounding.get("filters"))
        if example.group is None:
            return grounding
        return grounding | {"filters": outside_group(example.group, grounding.get("filters"))}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What was rendered before; a line that a killed worker left incomplete is rendered again."""
    if not path.exists():
        return {}
    known: dict[str, dict[str, Any]] = {}
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with path.open("r+b") as file:
            file.truncate(end)
    for line in whole[:end].decode().split("\n"):
        if line:
            entry = json.loads(line)
            known[entry["key"]] = entry
    return known
