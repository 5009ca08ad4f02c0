"""`data label`: a teacher answers prompts, and its answers become a training file."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.costs import amount_text
from adapters.labelling.asking import (
    CONCURRENCY,
    MAX_TOKENS,
    Journal,
    JournalInUse,
    SpentTokens,
    Teacher,
    TeacherBusy,
    TeacherRefusesAll,
    ask_all,
)
from adapters.labelling.prompts import Prompts, PromptsInvalid, read_prompts
from adapters.labelling.result import LabelFiles, Labelled, Outcome, sort_replies
from adapters.wording import counted
from service.cli import terminal
from service.cli.registry import text_or_file
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient, JsonObject
from service.client.output import not_written

if TYPE_CHECKING:
    from service.client.types.training import Teacher as TeacherObject

SAMPLE: Final = 50
MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Of an outside teacher: a million tokens of prompts and of answers, in the operator's currency."""

    input: float
    output: float

    def of(self, spent: SpentTokens) -> float | None:
        """What the tokens cost; None if some replies did not say how many they took."""
        return None if spent.unmetered else (spent.prompt * self.input + spent.completion * self.output) / MILLION


def label(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            exists=True,
            dir_okay=False,
            readable=True,
            help="JSONL with `messages` or `prompt`, or a .txt file with a prompt on each line.",
        ),
    ],
    teacher: Annotated[
        str, typer.Option(metavar="NAME", help="A model of the gateway, or an outside endpoint that it offers.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The training file. [default: PROMPTS with .labelled.jsonl]")
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help="A system prompt for the teacher; it is not in the training file."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = MAX_TOKENS,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Sampling temperature. [default: the teacher's own]")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at the same time.")] = CONCURRENCY,
    sample: Annotated[int, typer.Option(min=0, help="Answers on the page for people to check; 0: no page.")] = SAMPLE,
    outside: Annotated[
        bool, typer.Option("--outside", help="The teacher is an outside endpoint, even if a model has its name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a training file with a teacher's answers. Run it again to go on after an interruption.

    Refusals and answers that were cut are written to files beside it, and a random sample to a page to look at.
    """
    files = LabelFiles(out or prompts.with_name(f"{prompts.stem}.labelled.jsonl"))
    _check_files(files, prompts)
    found = _read(prompts)
    with terminal.reporting(as_json), HatrackClient() as client:
        price, is_outside = _find(client, teacher, outside=outside)
        system = None if system_prompt is None else text_or_file(system_prompt)
        asked = Teacher(teacher, is_outside, system, max_tokens, temperature)
        run = _Run(client, found, asked, files, sample)
        run.go(concurrency, quiet=as_json)
    summary = run.summary(price)
    if as_json:
        terminal.print_json(summary)
    else:
        _print(summary, found, files)


class _Run:
    """One labelling: asks, and writes the files however it ends."""

    def __init__(self, client: HatrackClient, found: Prompts, teacher: Teacher, files: LabelFiles, sample: int) -> None:
        self._client = client
        self._prompts = found
        self._teacher = teacher
        self._files = files
        self._sample = sample
        self._seconds = 0.0
        self.labelled = Labelled(())

    def go(self, concurrency: int, *, quiet: bool) -> None:
        """Ask what is not answered yet. Raises ClientError, whose message says how far it came."""
        began, prompts = time.monotonic(), self._prompts.prompts
        try:
            with Journal(self._files.journal) as journal, _bar(quiet) as progress:
                task = progress.add_task("", total=len(prompts))
                try:
                    asyncio.run(self._ask(journal, concurrency, lambda done: progress.update(task, completed=done)))
                finally:
                    self.labelled = sort_replies(prompts, self._teacher, journal)
                    self._files.write(self.labelled, self._teacher, self._sample)
        except OSError as error:
            raise not_written(self._files.training, error, self._go_on()) from error
        except JournalInUse as error:
            raise ClientError(0, "labelling_in_progress", f"{error}.") from error
        except TeacherBusy as error:
            raise ClientError(
                0, "teacher_busy", f"{self._teacher.name} is busy ({error.message}). {self._go_on()}"
            ) from error
        except TeacherRefusesAll as error:
            raise ClientError(
                0,
                "teacher_refuses_all",
                f"{self._teacher.name} refuses every prompt ({error.message}). {self._go_on()}",
            ) from error
        except ClientError as error:
            raise ClientError(error.status, error.code, f"{error.message} {self._go_on()}", error.param) from error
        except KeyboardInterrupt:
            typer.echo(f"\nhatrack: stopped. {self._go_on()}", err=True)
            raise
        finally:
            self._seconds = time.monotonic() - began

    async def _ask(self, journal: Journal, concurrency: int, on_done: Any) -> None:
        async with self._client.teacher_client(concurrency) as ask:
            await ask_all(
                *(self._prompts.prompts, self._teacher, journal, ask),
                concurrency=concurrency,
                on_progress=lambda done, _total: on_done(done),
            )

    def _go_on(self) -> str:
        done = len(self.labelled.prompts)
        return f"{done} of {len(self._prompts.prompts)} prompts have a reply; run the same command again to go on."

    def summary(self, price: Price | None) -> JsonObject:
        """What came of it, for JSON. ``cost`` is None where no price is known, or not how many tokens were taken."""
        labelled, answered = self.labelled, self.labelled.of(Outcome.ANSWERED)
        return {
            "object": "labelling",
            "teacher": self._teacher.name,
            "outside": self._teacher.outside,
            "prompts": len(self._prompts.prompts),
            "answered": len(answered),
            "refused": len(labelled.of(Outcome.REFUSED)),
            "truncated": len(labelled.of(Outcome.TRUNCATED)),
            "sample": min(self._sample, len(answered)),
            "prompt_tokens": labelled.spent.prompt,
            "completion_tokens": labelled.spent.completion,
            "unmetered_replies": labelled.spent.unmetered,
            "cost": None if price is None or (cost := price.of(labelled.spent)) is None else round(cost, 6),
            "served_by": dict(labelled.served_by),
            "seconds": round(self._seconds, 1),
            "file": str(self._files.training),
        }


def _read(path: Path) -> Prompts:
    try:
        return read_prompts(path.read_bytes(), as_text=path.suffix == ".txt")
    except PromptsInvalid as error:
        raise typer.BadParameter(f"{path}: {error}.", param_hint="PROMPTS") from error
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.", param_hint="PROMPTS") from error


def _check_files(files: LabelFiles, prompts: Path) -> None:
    """Refuse to write over what no labelling wrote. Raises BadParameter."""
    holds_prompts = next((path for path in files.all if path.resolve() == prompts.resolve()), None)
    if holds_prompts is not None:
        raise typer.BadParameter(
            f"{holds_prompts} holds the prompts, and would be written; name another file.", param_hint="--out"
        )
    existing = next((path for path in files.all if path.exists()), None)
    if existing is not None and not files.journal.exists():
        raise typer.BadParameter(
            f"{existing} exists, and there is no {files.journal.name} of a labelling beside it; name another file, or "
            "move this one away.",
            param_hint="--out",
        )


def _find(client: HatrackClient, name: str, *, outside: bool) -> tuple[Price | None, bool]:
    """The teacher's price, if one is known, and whether it is an outside endpoint. Raises ClientError."""
    if not outside:
        try:
            client.models.retrieve(name)
            return None, False
        except ClientError as error:
            if error.code != "model_not_found":
                raise
    teachers = {teacher["id"]: teacher for teacher in client.teachers.list()}
    if name in teachers:
        return _price(teachers[name]), True
    known = ", ".join(sorted(teachers)) or "none"
    raise ClientError(
        404, "teacher_not_found", f"{name} is neither a model of the gateway nor a teacher that it offers ({known})."
    )


def _price(teacher: TeacherObject) -> Price | None:
    prices = teacher.get("price_input"), teacher.get("price_output")
    return None if prices[0] is None or prices[1] is None else Price(prices[0], prices[1])


def _bar(quiet: bool) -> Progress:
    columns = (TextColumn("labelling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True)


def _print(summary: JsonObject, found: Prompts, files: LabelFiles) -> None:
    lines = [f"{summary['answered']} of {summary['prompts']} prompts are answered: {files.training}"]
    if found.repeated:
        repeated = "prompt repeats an earlier one and was", "prompts repeat an earlier one and were"
        lines.append(f"{counted(found.repeated, *repeated)} asked once")
    if found.answers:
        lines.append(f"{counted(found.answers, 'line')} had an answer, which was left out")
    if summary["refused"]:
        lines.append(f"{summary['refused']} refused, set aside: {files.refused}")
    if summary["truncated"]:
        lines.append(
            f"{summary['truncated']} cut at --max-tokens, set aside: {files.truncated} (run again with more to ask "
            "these again)"
        )
    if len(summary["served_by"]) > 1:
        versions = ", ".join(f"{name} {count}" for name, count in summary["served_by"].items())
        lines.append(f"answers come from several versions: {versions}")
    if summary["unmetered_replies"]:
        cost = f"of {counted(summary['unmetered_replies'], 'reply', 'replies')} the endpoint did not say how many"
    else:
        cost = "no price is known" if summary["cost"] is None else f"cost {amount_text(summary['cost'])}"
    lines.append(
        f"{summary['prompt_tokens']:,} tokens of prompts, {summary['completion_tokens']:,} of answers; {cost}; "
        f"{summary['seconds']:.0f} s in this run"
    )
    if summary["sample"]:
        lines.append(f"read {summary['sample']} of them before you train: {files.sample}")
    for line in lines:
        typer.echo(terminal.clean(line))
