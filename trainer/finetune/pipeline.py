"""The steps of a job's worker: fetch, prepare the data, plan, train, export, push, judge."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import describe
from adapters.inspect import modules_in
from adapters.manifest import Manifest
from adapters.protocol.runs import ParentShape
from trainer.base_model import chat_template
from trainer.data.prepare import DataRules, Prepared, Source, prepare
from trainer.data.report import Report
from trainer.errors import DataRefused, ParentUnsupported
from trainer.finetune import spec
from trainer.finetune.passages import passages_for
from trainer.finetune.plan_events import emit_plan_events, metrics
from trainer.finetune.registering import checkpoint_key, lineage_of, register, register_checkpoints
from trainer.finetune.spec import JobResult, JobSpec, PrimaryMetric, TrainingPlan
from trainer.finetune.system_prompt import resolve_system_prompt
from trainer.finetune.traffic import TrafficMonitor
from trainer.runs.control import Interrupted
from trainer.runs.directory import RunDirectory
from trainer.runs.failures import explain
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Failure
from trainer.runs.worker import Pipeline
from trainer.tune import auto
from trainer.tune.lineage import CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE, Metadata
from trainer.tune.memory_release import release_memory
from trainer.tune.progress import TrainingProgress
from trainer.tune.run import TrainingInputs, choose_device, train_adapter

if TYPE_CHECKING:
    from trainer.data.render import Renderer

NO_ENGINE: Final = "none"
"""The engine version in the fingerprint: an adapter is trained for a base model, whichever engine serves it."""
METRICS_INTERVAL_S: Final = 0.25
"""Minimum seconds between two metrics events; the last step of an epoch always has one."""
PAUSE_REPORT_INTERVAL_S: Final = 10.0
_LOG = logging.getLogger("hatrack.trainer.worker")


class TrainingPipeline(Pipeline[JobResult]):
    """One job. `check` raises Interrupted if the worker should exit."""

    result = JobResult

    def __init__(self, job: JobSpec, directory: RunDirectory, gateway: Gateway, check: Callable[[], None]) -> None:
        self._job = job
        self._directory = directory
        self._gateway = gateway
        self._check = check
        self._last_metrics_at = 0.0
        self._last_pause_report_at = 0.0
        self._reported_pause_s = 0.0
        self._pause_told = False

    def run(self, stage: str) -> JobResult | None:
        """See Pipeline."""
        if stage == spec.VALIDATE:
            self.validate()
            return None
        return self.train()

    def cancelled(self) -> tuple[JobResult, str]:
        """See Pipeline. A job whose version is registered has succeeded, without a verdict."""
        pushed = self._directory.read(spec.PUSHED, JobResult)
        if pushed is None:
            return JobResult(status="cancelled"), "cancelled"
        return pushed, "cancelled before it was judged; `live` was not moved"

    def failed(self, failure: Failure) -> tuple[JobResult, str]:
        """See Pipeline. A job whose version is registered has succeeded, without a verdict."""
        pushed = self._directory.read(spec.PUSHED, JobResult)
        if pushed is None:
            return JobResult(status="failed", error=failure), failure.message
        return pushed, f"{pushed.fine_tuned_model} is registered, without a verdict. {failure.message}"

    def validate(self) -> None:
        """Fetch and check the data and decide the recipe; writes report.json and plan.json."""
        self._prepare()

    def train(self) -> JobResult:
        """Do the whole job, resuming where it stands."""
        plan, prepared = self._prepare()
        output = self._directory.path(spec.OUTPUT)
        metadata = self._exported_metadata(output)
        if metadata is None:
            metadata = self._train(plan, prepared)
            release_memory()
        self._check()
        result = self._register(plan, output, metadata)
        if not self._job.judging.requested:
            return result
        return self._judge(result, plan, prepared, metadata)

    def _register(self, plan: TrainingPlan, output: Path, metadata: Metadata) -> JobResult:
        """Register the version, unless an earlier worker has, and the checkpoints that are missing."""
        job, directory, gateway = self._job, self._directory, self._gateway
        adapter: dict[str, Any] = {"plan": plan, "output": output, "metadata": metadata}
        result = directory.read(spec.PUSHED, JobResult) or register(job, directory, gateway, **adapter)
        return register_checkpoints(job, directory, gateway, self._check, **adapter, result=result)

    def _judge(self, result: JobResult, plan: TrainingPlan, prepared: Prepared, metadata: Metadata) -> JobResult:
        """The result with its verdict; without one if the judging fails, and then `live` does not move."""
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
            self._directory.emit_event(f"cancelled while it was judged: {name} is registered, and `live` was not moved")
            return result.model_copy(update=judging.partial_result())
        except Exception as error:
            _LOG.exception("the job could not be judged")
            again = f"To judge it, run `hatrack evaluate {name} --held-out {judging.held_out() or 'FILE'}`"
            message = f"{name} could not be judged: {explain(error).message} `live` was not moved. {again}"
            self._directory.emit_event(message, level="error", code=explain(error).code)
            return result
        return result.model_copy(update={"judged": judged, "files": files})

    # before training

    def _prepare(self) -> tuple[TrainingPlan, Prepared]:
        job, directory = self._job, self._directory
        for name, file in ((spec.TRAINING, job.training_file), (spec.HELD_OUT, job.validation_file)):
            if file is not None and not directory.path(name).exists():
                self._gateway.fetch(file, directory.path(name))
        parent = self._load_parent()
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
                self._data_rules(),
                check=self._check,
            )
        except DataRefused as refused:
            directory.write(spec.REPORT, refused.report)
            raise
        stored = directory.read(spec.PLAN, TrainingPlan)
        if stored is not None:
            return stored, prepared
        directory.write(spec.REPORT, prepared.report)
        plan = self._plan(prepared, length, config["hidden_size"], parent)
        directory.write(spec.PLAN, plan)
        emit_plan_events(directory.emit_event, job, prepared, plan)
        return plan, prepared

    def _data_rules(self) -> DataRules:
        """How the data are checked. What was held out and set aside when the plan was made stays so, whichever release
        resumes the job."""
        job = self._job
        rules = DataRules(
            overflow=job.overflow_policy,
            strict=job.strict,
            held_out_share=job.held_out_share,
            min_held_out=job.judging.min_examples,
            validation_share=None if job.wish.validation_share == "auto" else job.wish.validation_share,
            pairs=job.method == "dpo",
        )
        report = self._directory.read(spec.REPORT, Report)
        if report is None or not self._directory.path(spec.PLAN).exists():
            return rules
        return replace(
            rules,
            held_out_lines=report.held_out.lines if report.held_out.source == "split" else None,
            validation_lines=() if report.validation is None else report.validation.lines,
        )

    def _renderer(self, length: int) -> Renderer:
        from trainer.data.render import Renderer, stop_tokens
        from trainer.tune.model import load_generation_config, load_tokenizer

        plan = self._directory.read(spec.PLAN, TrainingPlan)
        tokenizer = load_tokenizer(self._job.base_dir)
        stops = stop_tokens(tokenizer, load_generation_config(self._job.base_dir))
        return Renderer(
            tokenizer,
            stop_tokens=stops,
            max_length=length,
            system_prompt=self._job.system_prompt,
            passages=passages_for(
                plan,
                # once there is a plan, it has the parent's; the parent itself may be deleted by then
                self._grounding if plan is None else None,
                *(self._job.base_name, self._directory, self._gateway),
            ),
        )

    @cached_property
    def _grounding(self) -> dict[str, Any] | None:
        """The new version's grounding."""
        return self._own_or_parents("grounding")

    def _own_or_parents(self, setting: str) -> dict[str, Any] | None:
        own: dict[str, Any] | None = getattr(self._job, setting)
        if own is not None or self._job.parent is None:
            return own
        return self._gateway.settings(self._job.parent).get(setting) or None

    def _source(self, name: str, filename: str) -> Source:
        return Source(filename, self._directory.path(name).read_bytes())

    def _load_parent(self) -> ParentShape | None:
        if self._job.parent is None:
            return None
        directory = self._directory.path(spec.PARENT)
        # each file is complete or absent, but a worker may have exited between the two
        if not all((directory / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            self._gateway.fetch_adapter(self._job.parent, directory)
        manifest = Manifest.parse((directory / CONFIG_FILE).read_bytes(), max_rank=self._job.max_rank)
        modules = modules_in(directory / WEIGHTS_FILE)
        # against its own modules: expressions become names, and patterns without effect go
        manifest = manifest.resolve(modules)
        if manifest.rank_pattern or manifest.alpha_pattern:
            raise ParentUnsupported(
                f"{self._job.parent} cannot be trained further: its modules differ in rank or alpha"
            )
        return ParentShape(
            rank=manifest.rank,
            alpha=float(manifest.alpha),
            rslora=manifest.use_rslora,
            target_modules=tuple(manifest.target_modules),
            modules=len(modules),
        )

    def _plan(self, prepared: Prepared, length: int, hidden_size: int, parent: ParentShape | None) -> TrainingPlan:
        stats = auto.DatasetStats(
            examples=len(prepared.sequences),
            tokens=sum(sequence.size for sequence in prepared.sequences),
            longest=max(sequence.longest for sequence in prepared.sequences),
            validation=len(prepared.validation_sequences),
        )
        recipe, chosen = auto.choose(
            self._job.wish,
            stats,
            objective=self._job.method,
            hidden_size=hidden_size,
            max_rank=self._job.max_rank,
            length=length,
            seed=self._job.seed,
            on_gpu=choose_device(self._job.device).type == "cuda",
            parent=parent,
        )
        return TrainingPlan(
            recipe=recipe,
            chosen=chosen,
            system_prompt=resolve_system_prompt(self._job.system_prompt, prepared),
            grounding=self._grounding,
            sampling=self._own_or_parents("sampling"),
            trained_with_passages=bool(self._grounding),
            tokens_an_epoch=stats.tokens,
            primary=self._primary(prepared),
            base_name=self._job.base_name,
        )

    def _primary(self, prepared: Prepared) -> PrimaryMetric:
        """The metric that will decide, fixed before the training starts."""
        from trainer.evaluate.arms import thinks
        from trainer.finetune.primary_metric import choose
        from trainer.tune.model import load_tokenizer

        tokenizer = load_tokenizer(self._job.base_dir)
        return choose(
            self._job.judging,
            prepared.training.examples,
            prepared.sequences,
            held_out=prepared.held_out_sequences,
            count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            context=self._job.context or prepared.report.max_length,
            thinking=thinks(chat_template(self._job.base_dir)),
        )

    # training

    def _exported_metadata(self, output: Path) -> Metadata | None:
        """The metadata of an adapter that was exported before a crash; None if there is none."""
        path = output / METADATA_FILE
        return Metadata.model_validate_json(path.read_bytes()) if path.exists() else None

    def _train(self, plan: TrainingPlan, prepared: Prepared) -> Metadata:
        from trainer.tune.checkpoint import Checkpoints

        job, directory = self._job, self._directory
        description = describe(
            job.base_dir,
            served_name=job.base_name,
            dtype=job.dtype,
            quantization=None,
            engine_version=NO_ENGINE,
            cache_dir=directory.directory.parent.parent / "base-cache",
        )
        lineage = lineage_of(job, plan, prepared, description)
        checkpoints = Checkpoints(
            directory.path(spec.CHECKPOINTS),
            key=checkpoint_key(lineage, plan),
            every_s=job.checkpoint_s,
            keep_epochs=job.checkpoint_versions,
        )
        inputs = TrainingInputs(
            base=job.base_dir,
            description=description,
            sequences=prepared.sequences,
            recipe=plan.recipe,
            lineage=lineage,
            held_out=prepared.held_out_sequences,
            validation=prepared.validation_sequences,
            parent=directory.path(spec.PARENT) if job.parent else None,
            device=job.device,
            price_per_hour=job.price_per_hour,
        )
        with TrafficMonitor(
            self._gateway.load,
            above=job.yield_above,
            max_s=job.yield_most_s,
            check=self._check,
            on_pause=self._tell_of_pause,
        ) as traffic:

            def before_batch() -> None:
                self._check()
                traffic.yield_to_traffic()
                if self._pause_told or time.monotonic() - self._last_pause_report_at > PAUSE_REPORT_INTERVAL_S:
                    self._report_pauses(traffic)

            def on_progress(now: TrainingProgress) -> None:
                self._report(now)
                before_batch()

            try:
                return train_adapter(
                    inputs,
                    directory.path(spec.OUTPUT),
                    on_stage=directory.emit_event,
                    on_progress=on_progress,
                    before_batch=before_batch,
                    checkpoints=checkpoints,
                )
            finally:
                with suppress(OSError):  # the exception under way reports a full disk
                    self._report_pauses(traffic)

    def _report(self, now: TrainingProgress) -> None:
        evaluation = now.evaluation
        if evaluation is None and not now.ends_epoch and time.monotonic() - self._last_metrics_at < METRICS_INTERVAL_S:
            return
        self._last_metrics_at = time.monotonic()
        data = metrics(now, self._job.method)
        self._directory.emit_event(f"Step {now.step}/{now.steps}: training loss={now.loss:.4f}", type="metrics", **data)

    def _tell_of_pause(self) -> None:
        """Emit an event while training stands still; the one on its end follows."""
        self._pause_told = True
        self._directory.emit_event("paused for live traffic", waits_for="live_traffic")

    def _report_pauses(self, traffic: TrafficMonitor) -> None:
        """Emit an event on the pauses since the last such event."""
        unreported_s = traffic.paused_s - self._reported_pause_s
        self._pause_told = False
        if unreported_s:
            self._directory.emit_event(f"paused {unreported_s:.1f} s for live traffic", paused_s=round(unreported_s, 2))
            self._last_pause_report_at, self._reported_pause_s = time.monotonic(), traffic.paused_s
