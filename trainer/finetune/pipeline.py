"""What a worker does, in order: fetch, look at the data, choose, train, write, push, judge."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import BaseDescription, describe
from adapters.inspect import modules_in
from adapters.manifest import Manifest
from adapters.protocol.runs import ParentShape
from trainer.data.prepare import Prepared, Rules, Source, prepare
from trainer.data.report import Report
from trainer.errors import DataRefused, ParentUnsupported
from trainer.finetune import spec
from trainer.finetune.plan_events import tell_plan
from trainer.finetune.spec import JobSpec, Plan, Primary, Result
from trainer.finetune.system_prompt import prompt_of
from trainer.finetune.traffic import ServingFirst
from trainer.runs.control import Interrupted
from trainer.runs.directory import RunDirectory
from trainer.runs.failures import explain
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Failure
from trainer.runs.worker import Pipeline
from trainer.tune import auto
from trainer.tune.lineage import (
    BESIDE,
    CONFIG_FILE,
    METADATA_FILE,
    WEIGHTS_FILE,
    DataSource,
    Lineage,
    Metadata,
    packages,
)
from trainer.tune.memory_release import let_go_of_memory
from trainer.tune.progress import Progress
from trainer.tune.run import Material, choose_device, train_adapter

if TYPE_CHECKING:
    from trainer.data.render import Renderer

ALIAS: Final = "candidate"
NO_ENGINE: Final = "none"
"""The fingerprint's engine version: an adapter is trained for a base, whichever engine serves it."""
METRICS_S: Final = 0.25
"""Least seconds between two metrics events; the last step of an epoch always has one."""
PAUSE_SAID_S: Final = 10.0
_LOG = logging.getLogger("hatrack.trainer.worker")


class TrainingPipeline(Pipeline[Result]):
    """One job. `check` raises where the worker is to end."""

    result = Result

    def __init__(self, job: JobSpec, directory: RunDirectory, gateway: Gateway, check: Callable[[], None]) -> None:
        self._job = job
        self._directory = directory
        self._gateway = gateway
        self._check = check
        self._epochs = 1
        self._said_metrics = 0.0
        self._said_pause = 0.0
        self._said_paused_s = 0.0

    def run(self, stage: str) -> Result | None:
        """See Pipeline."""
        if stage == spec.VALIDATE:
            self.validate()
            return None
        return self.train()

    def cancelled(self) -> tuple[Result, str]:
        """See Pipeline. A version that is there already is no cancelled one: it has no verdict, and nothing moves."""
        pushed = self._directory.read(spec.PUSHED, Result)
        if pushed is None:
            return Result(status="cancelled"), "cancelled"
        return pushed, "cancelled before it was judged; nothing was moved"

    def failed(self, failure: Failure) -> tuple[Result, str]:
        """See Pipeline. A version that is there already stays, unjudged."""
        pushed = self._directory.read(spec.PUSHED, Result)
        if pushed is None:
            return Result(status="failed", error=failure), failure.message
        return pushed, f"{pushed.fine_tuned_model} is there, without a verdict. {failure.message}"

    def validate(self) -> None:
        """Fetch the data, look at it, and decide the recipe; leaves report.json and plan.json."""
        self._ready()

    def train(self) -> Result:
        """The whole job, from wherever it stands."""
        plan, prepared = self._ready()
        output = self._directory.path(spec.OUTPUT)
        metadata = self._exported_metadata(output)
        if metadata is None:
            metadata = self._train(plan, prepared)
            let_go_of_memory()
        self._check()
        result = self._directory.read(spec.PUSHED, Result) or self._push(plan, output, metadata)
        return self._judged(result, plan, prepared, metadata)

    def _push(self, plan: Plan, output: Path, metadata: Metadata) -> Result:
        """Hand the adapter over; from now on the job has succeeded, whatever comes of the judging."""
        self._directory.emit_event("uploading the adapter; it is proven before it serves")
        settings = plan.model_dump(include={"system_prompt", "grounding"}, exclude_none=True)
        version = self._gateway.push(
            self._job.adapter, output, alias=ALIAS, settings=settings, metadata=metadata.model_dump_json()
        )
        name = f"{version['adapter']}@{version['version']}"
        training = metadata.training
        result = Result(
            status="succeeded",
            fine_tuned_model=name,
            digest=version["digest"],
            trained_tokens=training.trained_tokens,
            seconds=training.seconds,
            device=training.device,
            cost=training.cost or 0.0,
            final_loss=training.final_loss,
        )
        self._directory.write(spec.PUSHED, result)
        self._directory.emit_event(f"{name} is proven and answers, also as {self._job.adapter}:{ALIAS}")
        return result

    def _judged(self, result: Result, plan: Plan, prepared: Prepared, metadata: Metadata) -> Result:
        """The result with the verdict on it; without one where none can be had, and then nothing moves."""
        from trainer.finetune.judging import Judging

        name, primary = str(result.fine_tuned_model), plan.primary
        judging = Judging(
            self._job,
            self._directory,
            self._gateway,
            self._check,
            plan=plan,
            primary=primary if primary is not None else self._primary(prepared),
            prepared=prepared,
            metadata=metadata,
            name=name,
        )
        try:
            judged, files = judging.judge()
        except Interrupted as interrupted:
            if interrupted.code is not None:
                raise
            self._directory.emit_event(f"cancelled while it was judged: {name} is there, and nothing was moved")
            return result.model_copy(update=judging.so_far())
        except Exception as error:
            _LOG.exception("the job could not be judged")
            again = f"`hatrack evaluate {name} --held-out {judging.held_out() or 'FILE'}` judges it"
            message = f"{name} could not be judged: {explain(error).message} Nothing was moved. {again}"
            self._directory.emit_event(message, level="error", code=explain(error).code)
            return result
        return result.model_copy(update={"judged": judged, "files": files})

    # before training

    def _ready(self) -> tuple[Plan, Prepared]:
        job, directory = self._job, self._directory
        for name, file in ((spec.TRAINING, job.training_file), (spec.HELD_OUT, job.validation_file)):
            if file is not None and not directory.path(name).exists():
                self._gateway.fetch(file, directory.path(name))
        parent = self._parent()
        self._check()
        config: dict[str, Any] = json.loads((job.base_dir / "config.json").read_text())
        config = config.get("text_config", config)
        length = auto.max_length(job.wish, context=job.context, positions=config["max_position_embeddings"])
        renderer = self._renderer(length)
        try:
            prepared = prepare(
                self._source(spec.TRAINING, job.training_file.filename),
                self._source(spec.HELD_OUT, job.validation_file.filename) if job.validation_file else None,
                renderer,
                Rules(drop_long=job.drop_long, strict=job.strict, held_out_lines=self._split_before()),
                check=self._check,
            )
        except DataRefused as refused:
            directory.write(spec.REPORT, refused.report)
            raise
        known = directory.read(spec.PLAN, Plan)
        if known is not None:
            return known, prepared
        directory.write(spec.REPORT, prepared.report)
        plan = self._plan(prepared, length, config["hidden_size"], parent)
        directory.write(spec.PLAN, plan)
        tell_plan(directory.emit_event, job, prepared, plan)
        return plan, prepared

    def _split_before(self) -> tuple[int, ...] | None:
        """What was held out when the plan was made: it stays so, whichever release goes on with the job."""
        report = self._directory.read(spec.REPORT, Report)
        planned = self._directory.path(spec.PLAN).exists() and report is not None
        return report.held_out.lines if planned and report is not None and report.held_out.source == "split" else None

    def _renderer(self, length: int) -> Renderer:
        from trainer.data.render import Renderer, stop_tokens
        from trainer.tune.model import load_generation_config, load_tokenizer

        tokenizer = load_tokenizer(self._job.base_dir)
        stops = stop_tokens(tokenizer, load_generation_config(self._job.base_dir))
        return Renderer(tokenizer, stop_tokens=stops, max_length=length, system_prompt=self._job.system_prompt)

    def _source(self, name: str, filename: str) -> Source:
        return Source(filename, self._directory.path(name).read_bytes())

    def _parent(self) -> ParentShape | None:
        if self._job.parent is None:
            return None
        directory = self._directory.path(spec.PARENT)
        # each file is whole or absent, but a worker may have ended between the two
        if not all((directory / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            self._gateway.fetch_adapter(self._job.parent, directory)
        manifest = Manifest.parse((directory / CONFIG_FILE).read_bytes(), max_rank=self._job.max_rank)
        modules = modules_in(directory / WEIGHTS_FILE)
        # by the modules that it has: expressions become names, and patterns that say nothing go
        manifest = manifest.resolve(modules)
        if manifest.rank_pattern or manifest.alpha_pattern:
            raise ParentUnsupported(
                f"{self._job.parent} cannot be trained on from: its modules differ in rank or alpha"
            )
        return ParentShape(
            rank=manifest.rank,
            alpha=float(manifest.alpha),
            rslora=manifest.use_rslora,
            target_modules=tuple(manifest.target_modules),
            modules=len(modules),
        )

    def _plan(self, prepared: Prepared, length: int, hidden_size: int, parent: ParentShape | None) -> Plan:
        lengths = [len(sequence.tokens) for sequence in prepared.sequences]
        recipe, chosen = auto.choose(
            self._job.wish,
            auto.Seen(examples=len(lengths), tokens=sum(lengths), longest=max(lengths)),
            hidden_size=hidden_size,
            max_rank=self._job.max_rank,
            length=length,
            seed=self._job.seed,
            on_gpu=choose_device(self._job.device).type == "cuda",
            parent=parent,
        )
        return Plan(
            recipe=recipe,
            chosen=chosen,
            system_prompt=prompt_of(self._job.system_prompt, prepared),
            grounding=None if self._job.parent is None else self._gateway.settings(self._job.parent).get("grounding"),
            tokens_an_epoch=sum(lengths),
            primary=self._primary(prepared),
        )

    def _primary(self, prepared: Prepared) -> Primary:
        """By what it will be judged: fixed here, before anything is trained."""
        from trainer.finetune.primary import choose
        from trainer.tune.model import load_tokenizer

        tokenizer = load_tokenizer(self._job.base_dir)
        return choose(
            self._job.judging,
            prepared.training.examples,
            prepared.sequences,
            held_out=prepared.held_out_sequences,
            count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            context=self._job.context or prepared.report.max_length,
        )

    # training

    def _exported_metadata(self, output: Path) -> Metadata | None:
        """What a training that had ended before a crash left."""
        path = output / METADATA_FILE
        return Metadata.model_validate_json(path.read_bytes()) if path.exists() else None

    def _train(self, plan: Plan, prepared: Prepared) -> Metadata:
        from trainer.tune.checkpoint import Checkpoints

        job, directory = self._job, self._directory
        self._epochs = plan.recipe.epochs
        description = describe(
            job.base_dir,
            served_name=job.base_name,
            dtype=job.dtype,
            quantization=None,
            engine_version=NO_ENGINE,
            cache_dir=directory.directory.parent.parent / "base-cache",
        )
        lineage = self._lineage(plan, prepared, description)
        same = lineage.model_dump_json(exclude=BESIDE)
        key = hashlib.sha256(same.encode()).hexdigest()
        checkpoints = Checkpoints(directory.path(spec.CHECKPOINTS), key=key, every_s=job.checkpoint_s)
        material = Material(
            base=job.base_dir,
            description=description,
            sequences=prepared.sequences,
            recipe=plan.recipe,
            lineage=lineage,
            held_out=prepared.held_out_sequences,
            parent=directory.path(spec.PARENT) if job.parent else None,
            device=job.device,
            price_per_hour=job.price_per_hour,
        )
        with ServingFirst(
            self._gateway.load, above=job.yield_above, most_s=job.yield_most_s, check=self._check
        ) as serving:

            def between() -> None:
                self._check()
                serving.give_way()
                if time.monotonic() - self._said_pause > PAUSE_SAID_S:
                    self._say_pauses(serving)

            def on_progress(now: Progress) -> None:
                self._report(now)
                between()

            try:
                return train_adapter(
                    material,
                    directory.path(spec.OUTPUT),
                    on_stage=directory.emit_event,
                    on_progress=on_progress,
                    between=between,
                    checkpoints=checkpoints,
                )
            finally:
                with suppress(OSError):  # a full disk is told by what is under way
                    self._say_pauses(serving)

    def _lineage(self, plan: Plan, prepared: Prepared, description: BaseDescription) -> Lineage:
        job = self._job
        given = job.validation_file
        held_out = (
            DataSource(name=given.filename, sha256=given.sha256, examples=len(prepared.held_out)) if given else None
        )
        files = [job.training_file, *([job.validation_file] if job.validation_file else [])]
        return Lineage(
            data=(
                DataSource(
                    name=prepared.report.file, sha256=prepared.report.sha256, examples=prepared.report.trained_on
                ),
            ),
            recipe=plan.recipe,
            system_prompt=plan.system_prompt,
            held_out=held_out,
            drop_long=job.drop_long,
            base_name=job.base_name,
            base=description.fingerprint,
            parent=job.parent,
            job=job.id,
            files=tuple(file.id for file in files),
            packages=packages(),
        )

    def _report(self, now: Progress) -> None:
        evaluation = now.evaluation
        ends = evaluation is not None or now.step % (now.steps // self._epochs) == 0
        if not ends and time.monotonic() - self._said_metrics < METRICS_S:
            return
        self._said_metrics = time.monotonic()
        data: dict[str, Any] = {
            "step": now.step,
            "total_steps": now.steps,
            "epoch": round(now.epoch, 4),
            "train_loss": now.loss,
            "train_mean_token_accuracy": now.accuracy,
            "learning_rate": now.learning_rate,
            "tokens_per_s": round(now.tokens_per_s, 1),
            "seconds_left": round(now.seconds_left, 1),
            "memory_bytes": now.memory_bytes,
            "ends_epoch": ends,
        }
        if evaluation is not None:
            data |= {"full_valid_loss": evaluation.loss, "full_valid_mean_token_accuracy": evaluation.accuracy}
        self._directory.emit_event(f"Step {now.step}/{now.steps}: training loss={now.loss:.4f}", type="metrics", **data)

    def _say_pauses(self, serving: ServingFirst) -> None:
        """Say how long it has stood still since this was last said."""
        unsaid_s = serving.paused_s - self._said_paused_s
        if unsaid_s:
            self._directory.emit_event(f"stood still {unsaid_s:.1f} s for callers", paused_s=round(unsaid_s, 2))
            self._said_pause, self._said_paused_s = time.monotonic(), serving.paused_s
