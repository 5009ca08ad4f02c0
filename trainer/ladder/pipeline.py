"""The stages of a ladder's worker: prepare the data and make versions of the prompts; write the report.

What lies between them, evaluations and the job, are child runs that `trainer.ladder.kind` starts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from adapters.dataset.chat import MAX_PASSAGE_CHARS
from adapters.labelling.result import Outcome, draw, sample_page
from adapters.protocol.runs import FileRef
from adapters.wording import counted
from trainer.data.format import Example, parse_chat
from trainer.data.formats import read_dataset
from trainer.durable import replace_file
from trainer.errors import GatewayRefused
from trainer.evaluate.arms import questions
from trainer.evaluate.scored_arms import ArmScores
from trainer.ladder import spec
from trainer.ladder.first_token import measure_first_tokens
from trainer.ladder.labelling import Labelling, UsablePrompts, training_file, usable_prompts
from trainer.ladder.parts import QUICK_TRAINING
from trainer.ladder.preparing import PreparedData, example_settings, prepare_data
from trainer.ladder.reporting import build, render
from trainer.ladder.rungs import chosen_instructions
from trainer.ladder.spec import (
    Labels,
    LadderPlan,
    LadderResult,
    LadderSpec,
    Rung,
    RungKey,
    Rungs,
    SkippedRung,
    Uploads,
)
from trainer.ladder.stores import TOO_LONG, RungStores, example_lines, rung_grounding, unfindable
from trainer.runs import protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.worker import Pipeline

TRAINING: Final = "training.jsonl"
FINE_TUNE: Final = "fine-tune"
RESULTS: Final = "fine-tune-results"
SAMPLE: Final = 50
"""Of a teacher's answers, for people to read."""


class LadderPipeline(Pipeline[LadderResult]):
    """One ladder. `check` raises Interrupted if the worker should exit."""

    result = LadderResult

    def __init__(self, job: LadderSpec, directory: RunDirectory, gateway: Gateway, check: Callable[[], None]) -> None:
        self._job, self._directory, self._gateway, self._check = job, directory, gateway, check
        self._stores = RungStores(job, directory, gateway, self._upload_once, check)

    def run(self, stage: str) -> LadderResult | None:
        """See Pipeline."""
        if stage == spec.CONCLUDE:
            return self._conclude()
        plan = self._prepare()
        if stage == spec.LABEL:
            self._label(plan)
        elif plan.choosing is None or self._directory.path(spec.scores_file("choose")).exists():
            self._push_prompts(plan)
        return None

    def cancelled(self) -> tuple[LadderResult, str]:
        """See Pipeline."""
        return LadderResult(status="cancelled"), spec.CANCELLED

    # preparing

    def _prepare(self) -> LadderPlan:
        job, directory = self._job, self._directory
        stored = directory.read(spec.PLAN, LadderPlan)
        if stored is not None:
            return stored
        path = directory.path(spec.DATA)
        if not path.exists():
            self._gateway.fetch(job.context_of_request.training_file, path)
        data = prepare_data(
            job.context_of_request.training_file.filename,
            path.read_bytes(),
            base_dir=job.base_dir,
            context=job.context_tokens,
            given=job.body.instructions,
            quick=job.body.quick,
            check=self._check,
        )
        prompts = self._usable_prompts(data)
        directory.write(spec.DATA_REPORT, data.report)
        files = {part: self._upload(part, content) for part, content in data.parts.items() if content}
        plan = LadderPlan(
            training=files["training"],
            choosing=files.get("choosing") if len(data.instructions) > 1 else None,
            held_out=files["held_out"],
            counts=data.counts,
            subsets={key: files[key] for key in spec.SUBSETS if key in files},
            cleaner=data.cleaner,
            instructions=data.instructions,
            answers=data.answers,
            metric=data.metric,
            why_metric=data.why_metric,
            facts=data.facts,
            common_answer=data.common_answer,
            max_tokens=data.max_tokens,
            teacher_max_tokens=data.teacher_max_tokens,
            example_lines=tuple(example.line for example in data.shown),
            why_no_examples=data.why_none_shown,
            required_filters=data.required_filters,
            prompts=0 if prompts is None else prompts.count,
            notes=data.notes if prompts is None else (*data.notes, *prompts.notes),
        )
        directory.write(spec.PLAN, plan)
        counts = plan.counts
        directory.emit_event(
            f"{counts['training']} examples to learn from, {counts['choosing']} to choose the instructions on, "
            f"{counts['held_out']} held out; metric {plan.metric['name']}: {plan.why_metric}"
        )
        for warning in plan.facts.warnings:
            directory.emit_event(warning, level="warn")
        return plan

    def _usable_prompts(self, data: PreparedData) -> UsablePrompts | None:
        """The prompts for the teacher, None without one; writes `spec.PROMPTS`."""
        file, path = self._job.context_of_request.unlabelled_file, self._directory.path(spec.UNLABELLED)
        if file is None:
            return None
        if not path.exists():
            self._gateway.fetch(file, path)
        prompts = usable_prompts(
            file.filename,
            path.read_bytes(),
            parse_chat(data.parts["held_out"]),
            # the examples have lost a system message that all share, too; one of their own stays
            without_system=bool(data.instructions),
            limit=QUICK_TRAINING if self._job.body.quick else None,
        )
        replace_file(self._directory.path(spec.PROMPTS), prompts.content.decode())
        return prompts

    def _upload(self, part: str, content: bytes) -> FileRef:
        self._check()
        name = f"{self._job.id}-{part}.jsonl"
        file_id = self._upload_once(name, content, FINE_TUNE)
        return FileRef(id=file_id, filename=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _upload_once(self, name: str, content: bytes, purpose: str) -> str:
        """The id of an uploaded file; one that an earlier worker has uploaded is not uploaded again."""
        uploaded = self._directory.read(spec.UPLOADS, Uploads) or Uploads()
        if name not in uploaded.files:
            file_id = self._gateway.upload_file(name, content, purpose)
            uploaded = Uploads(files=uploaded.files | {name: file_id})
            self._directory.write(spec.UPLOADS, uploaded)
        return uploaded.files[name]

    # the rungs without weights

    def _push_prompts(self, plan: LadderPlan) -> None:
        """Make a version of every rung without weights; writes `spec.RUNGS` last."""
        if self._directory.path(spec.RUNGS).exists():
            return
        scores = self._directory.read(spec.scores_file("choose"), ArmScores)
        instructions = chosen_instructions(plan, scores)
        rungs = [Rung(key="base", title="the base as it is", model=self._job.base_name)]
        skipped: list[SkippedRung] = []
        notes: list[str] = []
        told: dict[str, Any] = {}
        if instructions is None:
            reason = "the examples have system messages of their own, which differ"
            skipped.append(SkippedRung(key="instructions", title="instructions", reason=reason))
        else:
            told = {"system_prompt": instructions}
            self._directory.emit_event(f"instructions chosen: {' '.join(instructions.split())[:200]}")
            rungs.append(self._rung("instructions", "instructions", told))
        shown = self._shown(plan)
        if shown:
            settings = told | {"examples": example_settings(shown)}
            title = f"{'instructions and ' if told else ''}{len(shown)} fixed examples"
            rungs.append(self._rung("examples", title, settings))
        else:
            skipped.append(SkippedRung(key="examples", title="fixed examples", reason=plan.why_no_examples))
        # each rung has what the one below has: a weaker prompt would make a LoRA look better than it is
        below = rungs[-1].settings
        rungs += self._retrieved_examples(plan, below, skipped, notes)
        stores = self._job.context_of_request.vector_stores
        if stores and self._stores.are_unfindable(plan.required_filters, stores):
            reason = unfindable(plan.required_filters)
            skipped.append(SkippedRung(key="documents", title="retrieved documents", reason=reason))
        elif stores:
            grounding = rung_grounding(plan, stores)
            rungs.append(self._rung("documents", "the same with retrieved documents", below | {"grounding": grounding}))
        made = Rungs(instructions=instructions, rungs=tuple(rungs), skipped=tuple(skipped), notes=tuple(notes))
        self._directory.write(spec.RUNGS, made)

    def _rung(self, key: RungKey, title: str, settings: dict[str, Any], store: str | None = None) -> Rung:
        self._check()
        began = time.monotonic()
        metadata = {"ladder": self._job.id, "rung": key}
        version = self._gateway.push_settings(self._job.body.adapter, settings, metadata)
        model = f"{version['adapter']}@{version['version']}"
        self._directory.emit_event(f"{model}: {title}")
        return Rung(
            key=key,
            title=title,
            model=model,
            settings=settings,
            store=store,
            push_seconds=round(time.monotonic() - began, 3),
        )

    def _shown(self, plan: LadderPlan) -> list[Example]:
        content = self._directory.path(spec.DATA).read_bytes()
        _, data = read_dataset(self._job.context_of_request.training_file.filename, content)
        by_line = {example.line: example for example in data.examples}
        return [by_line[line] for line in plan.example_lines]

    def _retrieved_examples(
        self, plan: LadderPlan, below: dict[str, Any], skipped: list[SkippedRung], notes: list[str]
    ) -> list[Rung]:
        """The rung with the nearest examples as turns: a store of the training part, one passage an example."""
        path = self._directory.path(TRAINING)
        try:
            if not path.exists():
                self._gateway.fetch(plan.training, path)
            documents, too_long = example_lines(read_dataset(TRAINING, path.read_bytes())[1].examples)
            replace_file(self._directory.path("store.jsonl"), documents)
            if too_long:
                notes.append(counted(too_long, *TOO_LONG))
            if not documents:
                reason = (
                    "no example is a conversation of a user and an assistant alone, without tool calls, of at most "
                    f"{MAX_PASSAGE_CHARS} characters"
                )
                skipped.append(SkippedRung(key="retrieved_examples", title="retrieved examples", reason=reason))
                return []
            store = self._stores.of_examples(documents.encode())
        except GatewayRefused as refused:
            reason = f"the examples could not be put into a store: {refused.message}"
            skipped.append(SkippedRung(key="retrieved_examples", title="retrieved examples", reason=reason))
            return []
        settings = below | {"grounding": rung_grounding(plan, [store]) | {"insert_as": "turns"}}
        return [self._rung("retrieved_examples", "the same with retrieved examples", settings, store)]

    # the teacher

    def _label(self, plan: LadderPlan) -> None:
        """Have the teacher answer the prompts; writes `spec.LABELS`."""
        directory = self._directory
        before = directory.read(spec.LABELS, Labels)
        if before is not None and before.over:
            return
        rungs = directory.read(spec.RUNGS, Rungs) or Rungs()
        write = partial(directory.write, spec.LABELS)
        labelling = Labelling(self._job, plan, rungs.instructions, directory, self._check, write)
        directory.emit_event(f"{labelling.teacher.name} answers {counted(plan.prompts, 'prompt')}")
        labels, labelled = labelling.run(directory.path(protocol.KEY).read_text().strip())
        if labels.error is None:
            labels = labels.model_copy(update={"file": self._upload("labelled", training_file(labelled))})
            sample = draw(labelled.of(Outcome.ANSWERED), SAMPLE)
            page = sample_page(sample, labels.answered, labelling.teacher)
            directory.path(spec.SAMPLE).write_text(page, "utf-8")
        directory.write(spec.LABELS, labels)
        directory.emit_event(
            f"{labels.answered} of {labels.prompts} prompts are answered; {labels.refused} refused and "
            f"{labels.truncated} cut answers are set aside"
        )

    # concluding

    def _conclude(self) -> LadderResult:
        plan = self._prepare()
        self._time_first_tokens(plan)
        report = build(self._job, plan, self._directory)
        page = render(report)
        self._directory.path(spec.REPORT).write_text(report.model_dump_json(), "utf-8")
        self._directory.path(spec.PAGE).write_text(page, "utf-8")
        uploaded = [
            self._upload_once(f"{self._job.id}-{name}", self._directory.path(name).read_bytes(), RESULTS)
            for name in (spec.REPORT, spec.PAGE, spec.SAMPLE)
            if self._directory.path(name).exists()
        ]
        advice = report.advice
        model = next((rung.model for rung in report.rungs if rung.key == advice.rung), None)
        self._directory.emit_event(advice.sentence)
        return LadderResult(
            status="succeeded",
            advice=advice.word,
            rung=advice.rung,
            model=model,
            sentence=advice.sentence,
            files=tuple(uploaded),
            seconds=round(time.time() - self._job.created_at, 1),
        )

    def _time_first_tokens(self, plan: LadderPlan) -> None:
        path = self._directory.path(TRAINING)
        if not path.exists():
            try:
                self._gateway.fetch(plan.training, path)
            except GatewayRefused as error:  # deleted meanwhile: the report is worth more than these times
                self._directory.emit_event(f"no first token could be timed: {error.message}", level="warn")
                return
        asked = questions(parse_chat(path.read_bytes()))
        rungs = self._directory.read(spec.RUNGS, Rungs) or Rungs()
        measure_first_tokens(self._job, rungs.rungs, asked, self._directory, self._gateway, self._check)
