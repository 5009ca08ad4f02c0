"""`rebase`: what is live on other bases is made anew for one, judged against its predecessor, and promoted or not."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from adapters.names import DEFAULT_ALIAS
from adapters.wording import counted
from service.cli import terminal
from service.cli.jobs import follow_job
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, CannotConnect, ClientError, HatrackClient, JsonObject
from service.client.wire import REBASE, base_names

if TYPE_CHECKING:
    from service.client.types.adapters import Adapter, AdapterVersion
    from service.client.types.evaluations import Evaluation
    from service.client.types.training import FineTuningJob

Way = Literal["train", "push", "none"]
POLL_S: Final = 2.0
CANNOT: Final = "pushed from outside: no job of this gateway has trained it, so it cannot be trained again"
BESIDE: Final = "judged beside it on the same questions"
ALONE: Final = "its base is not served: judged alone"
SPLIT: Final = "`live` is a split; end it first"
NOT_PROMOTED: Final = "its job promotes nothing: `hatrack promote {made}`"
ABORTING: Final = frozenset({401, 403, 503})
"""Statuses that are not about one adapter."""


@dataclass(slots=True)
class Step:
    """What becomes of one version.

    Attributes:
        version: What is live, as `name@number`; or what a live version was continued from, which must come before it.
        way: `train`: its job again, for the new base; `push`: its settings, which have no weights; `none`: nothing, and
            ``note`` says why.
        start: The version that it was continued from, which has a step of its own before this one.
        is_ancestor: It is not live itself, and is trained only to be continued.
        run: The job, or the evaluation of what was pushed; an earlier attempt's, where that has begun it.
    """

    version: str
    base: str | None
    way: Way
    note: str = ""
    start: str | None = None
    is_ancestor: bool = False
    made: str | None = None
    run: JsonObject = field(default_factory=dict)
    is_live: bool = False

    @property
    def is_begun(self) -> bool:
        """Whether an earlier attempt has begun or done it."""
        return bool(self.run)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left undone."""
        return self.is_live or (self.is_ancestor and self.made is not None)

    def payload(self) -> JsonObject:
        """As JSON."""
        names = ("version", "base", "way", "note", "start", "is_ancestor", "made", "is_live")
        return {**{name: getattr(self, name) for name in names}, "run": self.run.get("id")}


def rebase(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Adapters. [default: all that are live]")
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="BASE", help="The base's name, as in GET /v1/models.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation; needed in scripts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move adapters to another base: train each live version again for it, and promote what passes.

    The same examples are held out as before; where the old base is still served, the new version must also be no worse
    than its predecessor on them. What does not pass stays a candidate, and the predecessor stays live. A version that
    was continued from another comes after that one. Run it again after an interruption: nothing is done twice.
    """
    if not to:
        raise typer.BadParameter("name the base with --to.")
    with terminal.reporting(as_json), HatrackClient() as client:
        steps = _plan(client, to, set(names or []))
        todo = [step for step in steps if step.way != "none"]
        if not dry_run and todo:
            if not as_json:
                _print_plan(steps, to)
            _confirm(len(todo), to, yes=yes)
            made: dict[str, str | None] = {}
            for step in todo:
                _do(client, step, to, made, quiet=as_json)
                made[step.version] = step.made
    if as_json:
        terminal.print_json([step.payload() for step in steps])
    elif dry_run or not todo:
        _print_plan(steps, to)
    else:
        _print_results(todo)
    if not dry_run and not all(step.is_done for step in todo):
        raise typer.Exit(terminal.FAILED)


def _confirm(count: int, to: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("stdin is not a terminal: give --yes to make the versions, or --dry-run to see them.")
    typer.confirm(f"Make {counted(count, 'version')} for {to}?", abort=True, err=True)


def _plan(client: HatrackClient, to: str, names: set[str]) -> list[Step]:
    """What is to be done for each adapter that has a live version on another base, ancestors first.

    Raises:
        ClientError: `base_unknown`; `adapter_unknown` for a name that has nothing live.
    """
    bases = base_names(client.models.list())
    if to not in bases:
        served = ", ".join(bases)
        raise ClientError(0, "base_unknown", f"The gateway serves no base `{to}`; it serves {served}.", "to")
    adapters = list(client.adapters.list())
    if missing := sorted(names - {adapter["name"] for adapter in adapters}):
        raise ClientError(0, "adapter_unknown", f"There is no adapter `{missing[0]}`.", "names")
    planner = _Planner(adapters, _begun(client, to))
    for adapter in adapters:
        if (not names or adapter["name"] in names) and DEFAULT_ALIAS in adapter["aliases"]:
            planner.add_live(adapter, to)
    return list(planner.steps.values())


def _begun(client: HatrackClient, to: str) -> dict[str, FineTuningJob]:
    """The newest job that an earlier attempt has created for each version, unless it failed."""
    begun: dict[str, FineTuningJob] = {}
    suffix = _mark("", to)
    for job in client.fine_tuning.jobs.list():
        mark = str((job.get("metadata") or {}).get(REBASE, ""))
        if mark.endswith(suffix) and job["status"] not in ("failed", "cancelled"):
            begun.setdefault(mark.removesuffix(suffix), job)
    return begun


def _mark(version: str, to: str) -> str:
    """What a job's metadata say of the version that it trains again."""
    return f"{version} for {to}"


class _Planner:
    """Makes the steps, each after that of the version which it continues.

    Args:
        adapters: All of the project.
        begun: Jobs of an earlier attempt, by the version that they train again.
    """

    def __init__(self, adapters: Sequence[Adapter], begun: Mapping[str, FineTuningJob]) -> None:
        self.steps: dict[str, Step] = {}
        self._begun = begun
        self._under_way: set[str] = set()
        """Versions whose ancestors are being added: metadata is the uploader's, and may name a circle."""
        self._versions: dict[str, AdapterVersion] = {
            f"{adapter['name']}@{version['version']}": version
            for adapter in adapters
            for version in adapter["versions"]
        }

    def add_live(self, adapter: Adapter, to: str) -> None:
        """Add the step of an adapter's live version, unless that serves on the new base already."""
        number = adapter["aliases"][DEFAULT_ALIAS]
        if number is None:
            self.steps[adapter["name"]] = Step(adapter["name"], None, "none", SPLIT)
        elif self._versions[f"{adapter['name']}@{number}"]["base_name"] != to:
            self._add(f"{adapter['name']}@{number}")

    def _add(self, label: str, before: str | None = None) -> Step:
        """Add a version's step, and before it those of its ancestors; ``before``: what continues it."""
        if (known := self.steps.get(label)) is not None:
            known.is_ancestor = known.is_ancestor and before is not None
            return known
        if label in self._under_way:
            return Step(label, None, "none", "its lineage leads back to itself")
        self._under_way.add(label)
        step = self._step(label)
        self._under_way.discard(label)
        if before is not None:
            step.is_ancestor = True
            if step.way != "none" and not step.is_begun:
                step.note = f"first, because {before} continues it"
        if step.way != "none" or before is None:
            self.steps[label] = step
        return step

    def _step(self, label: str) -> Step:
        version = self._versions.get(label)
        if version is None:
            return Step(label, None, "none", f"{label} no longer exists")
        base = version["base_name"]
        if version["digest"] is None:
            return Step(label, base, "push", "no weights: its settings, pushed again")
        lineage: Any = version["metadata"].get("lineage")
        if not isinstance(lineage, dict) or not isinstance(lineage.get("job"), str):
            return Step(label, base, "none", CANNOT)
        step = Step(label, base, "train", ALONE if base is None else BESIDE)
        parent = lineage.get("parent")
        if isinstance(parent, str):
            ancestor = self._add(parent, before=label)
            if ancestor.way != "train":
                why = f"it continues {parent}, which cannot be trained again: {ancestor.note}"
                return Step(label, base, "none", why)
            step.start = parent
        self._take_up(step)
        return step

    def _take_up(self, step: Step) -> None:
        """Note the job that an earlier attempt has created for the step, if its version is still there."""
        job = self._begun.get(step.version)
        if job is None or (job["status"] == "succeeded" and job.get("fine_tuned_model") not in self._versions):
            return
        step.run, step.made = {**job}, job.get("fine_tuned_model")
        step.note = f"{job['id']} of an earlier attempt: {job['status']}"


def _do(client: HatrackClient, step: Step, to: str, made: Mapping[str, str | None], *, quiet: bool) -> None:
    """Do one step; what cannot be done is noted, and keeps no other from being done.

    Args:
        made: The new versions of the steps before, by their old ones.
    """
    try:
        if step.way == "push":
            _push(client, step, to)
        elif step.start is not None and made.get(step.start) is None:
            step.note = f"not tried: it continues {step.start}, which was not trained for {to}"
        else:
            _train(client, step, to, None if step.start is None else made[step.start], quiet=quiet)
    except ClientError as error:
        if isinstance(error, CannotConnect) or error.status in ABORTING:
            raise
        step.note = error.message


def _train(client: HatrackClient, step: Step, to: str, start: str | None, *, quiet: bool) -> None:
    if step.is_begun:
        job = client.fine_tuning.jobs.retrieve(step.run["id"])
    else:
        notes = {REBASE: _mark(step.version, to)} | ({"promote": "never"} if step.is_ancestor else {})
        job = client.fine_tuning.jobs.repeat(step.version, base=to, start=start, metadata=notes)
    if job["status"] not in FINAL_STATUSES:
        if not quiet:
            typer.echo(f"{job['id']} trains {step.version} again, for {to}")
        job = follow_job(client, job["id"], quiet=quiet)
    step.run, step.made = {**job}, job.get("fine_tuned_model")
    verdict: Any = job["hatrack"].get("verdict") or {}
    error: Any = job.get("error") or {}
    step.is_live = step.made is not None and _is_live(client, step.made)
    step.note = str(verdict.get("sentence") or error.get("message") or job["status"])
    if step.is_live or step.is_ancestor or step.made is None:
        return
    if not verdict:  # the judging was cut off, or failed
        _judge(client, step)
    elif verdict.get("verdict") == "pass" and (job.get("metadata") or {}).get("promote") == "never":
        step.note += f" But {NOT_PROMOTED.format(made=step.made)}"


def _push(client: HatrackClient, step: Step, to: str) -> None:
    name, _, number = step.version.partition("@")
    before = client.adapters.versions.retrieve(name, int(number))
    pushed = client.adapters.push(name, settings={**before["settings"]}, alias="candidate", base=to)
    step.made = f"{name}@{pushed['version']}"
    _judge(client, step)


def _judge(client: HatrackClient, step: Step) -> None:
    """Have what was made judged on the questions of its predecessor's last verdict, unless an earlier attempt has."""
    made = str(step.made)
    held_out = _held_out(client, step.version)
    if held_out is None:
        step.note = f"{step.version} was never judged: try {made}, then `hatrack promote {made}`"
        return
    name, _, number = made.partition("@")
    for verdict in client.adapters.versions.verdicts(name, int(number)):
        if verdict["files"].get("held_out") == held_out:
            step.note = verdict["sentence"]
            break
    else:
        evaluation = _evaluated(client, made, held_out)
        step.run = {**evaluation}
        step.note = str(evaluation.get("sentence") or evaluation["status"])
    step.is_live = _is_live(client, made)


def _evaluated(client: HatrackClient, made: str, held_out: str) -> Evaluation:
    """The evaluation of a version when it has ended: one that is under way already, or else a new one."""
    under_way = (
        each
        for each in client.evaluations.list()
        if each["status"] not in FINAL_STATUSES and made in (each.get("model"), each.get("candidate"))
    )
    evaluation = next(under_way, None) or client.evaluations.create(held_out, model=made, promote="auto")
    while evaluation["status"] not in FINAL_STATUSES:
        time.sleep(POLL_S)
        evaluation = client.evaluations.retrieve(evaluation["id"])
    return evaluation


def _is_live(client: HatrackClient, made: str) -> bool:
    name, _, number = made.partition("@")
    return client.adapters.retrieve(name)["aliases"].get(DEFAULT_ALIAS) == int(number)


def _held_out(client: HatrackClient, version: str) -> str | None:
    """The file of held-out examples of the version's latest verdict that has one."""
    name, _, number = version.partition("@")
    for verdict in client.adapters.versions.verdicts(name, int(number)):
        if held_out := verdict["files"].get("held_out"):
            return str(held_out)
    return None


def _print_plan(steps: list[Step], to: str) -> None:
    if not steps:
        typer.echo(f"Everything that is live serves on {to}.")
        return
    doing = {"train": "train again", "push": "push again", "none": "left as it is"}
    rows = [
        (step.version, step.base or "-", "go on" if step.is_begun else doing[step.way], step.note) for step in steps
    ]
    terminal.print_table(("LIVE", "BASE", f"FOR {to}", "NOTE"), rows)


def _print_results(steps: list[Step]) -> None:
    rows = [(step.version, step.made or "-", _told(step), step.note) for step in steps]
    terminal.print_table(("BEFORE", "NOW", "LIVE", "WHY"), rows)


def _told(step: Step) -> str:
    return "-" if step.is_ancestor else "yes" if step.is_live else "no"
