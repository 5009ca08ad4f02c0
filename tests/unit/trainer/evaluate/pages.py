"""A report with everything in it, and with what a hostile data set would put there."""

from __future__ import annotations

from datetime import UTC, datetime

from adapters.base import Fingerprint
from adapters.protocol.reports import AnswerShare, ExampleLengths, LossPoint, ReportCost
from tests.unit.trainer.evaluate.worlds import QUICK, forgetting, form, row
from trainer.data.report import Finding, HeldOut
from trainer.data.report import Report as DataReport
from trainer.evaluate.arms import Arm, ChatMessage, Question
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.report import EvaluationReport, TrainingSummary, build
from trainer.evaluate.verdict import Rules, decide
from trainer.tune.lineage import Lineage
from trainer.tune.recipe import Recipe

HOSTILE = "</p><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""


def comparison(count: int = 60, *, right: int = 50) -> Comparison:
    asked = tuple(
        Question(
            id=str(at), turns=(ChatMessage(role="user", content=f"{HOSTILE} {at}"),), reference=f"ref {at} {HOSTILE}"
        )
        for at in range(count)
    )

    def result(label: str, good: int) -> ArmResult:
        return ArmResult(
            arm=Arm(label=label, model=f"model of {label}"),
            answers=tuple(f"{label} says {HOSTILE} to {at}" for at in range(count)),
            runs=(tuple(row(good, count)), tuple(row(good, count))),
            secondary={"contains": tuple(row(good, count)), "length_words": (3.0,) * count},
            nats=(1.5,) * count,
            prompt_tokens=700,
            completion_tokens=300,
            cut_at=(0, 1),
        )

    results = (result("base", count // 5), result("voice@3", right), result(f"live {HOSTILE}", count * 4 // 5))
    return Comparison(metric="exact_match", binary=True, questions=asked, results=results)


def report(found: Comparison | None = None, lost: Forgetting | None = None, *, whole: bool = True) -> EvaluationReport:
    found = found or comparison()
    count = len(found.questions)
    verdict = decide(
        found,
        candidate="voice@3",
        bases=["base"],
        live=f"live {HOSTILE}",
        form=form(count, 0.1),
        forgetting=lost if lost is not None else forgetting() if whole else None,
        rules=Rules(method=QUICK),
    )
    when = datetime(2026, 3, 4, 15, 6, tzinfo=UTC)
    if not whole:
        return build(found, verdict, adapter="voice@3", created_at=when)
    curve = tuple(
        LossPoint(step=at, training=4 / at, held_out=4 / at + 0.2 if at % 20 == 0 else None) for at in range(1, 61)
    )
    cost = ReportCost(training_s=3725, trained_tokens=123456, device="cpu", price=1.25, evaluation_s=42)
    training = TrainingSummary(loss_curve=curve, data=data_report(), lineage=lineage(), cost=cost)
    return build(found, verdict, adapter="voice@3", created_at=when, training=training)


def data_report() -> DataReport:
    return DataReport(
        file=f"voice {HOSTILE}.jsonl",
        sha256="ab" * 32,
        format="chat",
        examples=400,
        trained_on=340,
        dropped=0,
        held_out=HeldOut(examples=60, source="split", seed=3),
        lengths=ExampleLengths(shortest=5, median=20, p95=60, longest=90, total=8000, trained=3000),
        max_length=512,
        findings=(Finding(code="near_duplicates", severity="warning", message=f"4 {HOSTILE}", count=4, lines=(3, 9)),),
        system_prompt=None,
        answers=(AnswerShare(answer=HOSTILE, examples=41),),
        distinct_answers=77,
        shown=(),
        size="340 examples: expect form, not coverage.",
    )


def lineage() -> Lineage:
    parts = ("weights", "config", "tokenizer", "template", "dtype", "quantization", "engine_version")
    return Lineage(
        data=(),
        recipe=Recipe(rank=8, learning_rate=5e-4),
        system_prompt=f"Be kind. {HOSTILE}",
        base_name="smollm2-135m-instruct",
        base=Fingerprint(**dict.fromkeys(parts, "x")),
        parent="voice@2",
        job="ftjob-7",
    )
