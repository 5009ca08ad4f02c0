"""`rebase`: what is live on other bases is made anew for one, judged against its predecessor, and promoted or not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from adapters.names import DEFAULT_ALIAS
from service.cli import terminal
from service.cli.jobs import follow_job
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, ClientError, HatrackClient, JsonObject
from service.client.wire import base_names

if TYPE_CHECKING:
    from service.client.types.adapters import Adapter, AdapterVersion

Way = Literal["train", "push", "none"]
POLL_S: Final = 2.0
CANNOT: Final = "pushed from outside: no job of this gateway has trained it, so it cannot be trained again"
SPLIT: Final = "`live` is a split; end it first"


@dataclass(slots=True)
class Step:
    """What becomes of one adapter.

    Attributes:
        version: What is live, as `name@number`.
        way: `train`: its job again, for the new base; `push`: its settings, which have no weights; `none`: nothing, and
            ``note`` says why.
        run: The job, or the evaluation of what was pushed.
    """

    version: str
    base: str | None
    way: Way
    note: str = ""
    made: str | None = None
    run: JsonObject = field(default_factory=dict)
    is_live: bool = False

    def payload(self) -> JsonObject:
        """As JSON."""
        names = ("version", "base", "way", "note", "made", "is_live")
        return {**{name: getattr(self, name) for name in names}, "run": self.run.get("id")}


def rebase(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Adapters. [default: all that are live]")
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="BASE", help="The base's name, as in GET /v1/models.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move adapters to another base: train each live version again for it, and promote what passes.

    The same examples are held out as before; where the old base is still served, the new version must also be no worse
    than its predecessor on them. What does not pass stays a candidate, and the predecessor stays live.
    """
    if not to:
        raise typer.BadParameter("name the base with --to.")
    with terminal.reporting(as_json), HatrackClient() as client:
        steps = _plan(client, to, set(names or []))
        todo = [step for step in steps if step.way != "none"]
        if not dry_run and todo:
            if not as_json:
                _print_plan(steps, to)
                if not yes:
                    typer.confirm(f"Make {len(todo)} versions for {to}?", abort=True)
            for step in todo:
                _do(client, step, to, quiet=as_json)
    if as_json:
        terminal.print_json([step.payload() for step in steps])
    elif dry_run or not todo:
        _print_plan(steps, to)
    else:
        _print_results(todo)
    if not dry_run and not all(step.is_live for step in todo):
        raise typer.Exit(terminal.FAILED)


def _plan(client: HatrackClient, to: str, names: set[str]) -> list[Step]:
    """What is to be done for each adapter that has a live version on another base.

    Raises:
        ClientError: `base_unknown`; `adapter_unknown` for a name that has nothing live.
    """
    models = list(client.models.list())
    bases = base_names(models)
    if to not in bases:
        served = ", ".join(bases)
        raise ClientError(0, "base_unknown", f"The gateway serves no base `{to}`; it serves {served}.", "to")
    adapters = [adapter for adapter in client.adapters.list() if not names or adapter["name"] in names]
    if missing := sorted(names - {adapter["name"] for adapter in adapters}):
        raise ClientError(0, "adapter_unknown", f"There is no adapter `{missing[0]}`.", "names")
    steps = [_step(adapter, to) for adapter in adapters if DEFAULT_ALIAS in adapter["aliases"]]
    return [step for step in steps if step.base != to]


def _step(adapter: Adapter, to: str) -> Step:
    name, number = adapter["name"], adapter["aliases"][DEFAULT_ALIAS]
    if number is None:
        return Step(name, None, "none", SPLIT)
    version = _version(adapter["versions"], number)
    label, base = f"{name}@{number}", version["base_name"]
    if version["digest"] is None:
        return Step(label, base, "push", "no weights: its settings, pushed again")
    lineage = version["metadata"].get("lineage")
    if not isinstance(lineage, dict) or not isinstance(lineage.get("job"), str):
        return Step(label, base, "none", CANNOT)
    beside = "judged beside it on the same questions" if base is not None else "its base is not served: judged alone"
    return Step(label, base, "train", beside)


def _version(versions: Iterable[AdapterVersion], number: int) -> AdapterVersion:
    return next(version for version in versions if version["version"] == number)


def _do(client: HatrackClient, step: Step, to: str, *, quiet: bool) -> None:
    """Do one step; what cannot be done is noted, and keeps no other from being done."""
    try:
        if step.way == "train":
            _train(client, step, to, quiet=quiet)
        else:
            _push(client, step, to)
    except ClientError as error:
        if error.status in (0, 401, 403, 503):
            raise  # not about this adapter
        step.note = error.message


def _train(client: HatrackClient, step: Step, to: str, *, quiet: bool) -> None:
    job = client.fine_tuning.jobs.repeat(step.version, base=to)
    if not quiet:
        typer.echo(f"{job['id']} trains {step.version} again, for {to}")
    job = follow_job(client, job["id"], quiet=quiet)
    step.run, step.made = {**job}, job.get("fine_tuned_model")
    verdict: Any = job["hatrack"].get("verdict") or {}
    error: Any = job.get("error") or {}
    step.is_live = bool(verdict.get("live"))
    step.note = str(verdict.get("sentence") or error.get("message") or job["status"])


def _push(client: HatrackClient, step: Step, to: str) -> None:
    name, _, number = step.version.partition("@")
    before = client.adapters.versions.retrieve(name, int(number))
    made = client.adapters.push(name, settings={**before["settings"]}, alias="candidate", base=to)
    step.made = f"{name}@{made['version']}"
    held_out = _held_out(client, name, int(number))
    if held_out is None:
        step.note = f"{step.version} was never judged: try {step.made}, then `hatrack promote {step.made}`"
        return
    evaluation = client.evaluations.create(held_out, model=step.made, promote="auto")
    while evaluation["status"] not in FINAL_STATUSES:
        time.sleep(POLL_S)
        evaluation = client.evaluations.retrieve(evaluation["id"])
    step.run = {**evaluation}
    after = client.adapters.retrieve(name)
    step.is_live = after["aliases"].get(DEFAULT_ALIAS) == made["version"]
    step.note = str(evaluation.get("sentence") or evaluation["status"])


def _held_out(client: HatrackClient, name: str, number: int) -> str | None:
    """The file of held-out examples of the version's latest verdict that has one."""
    for verdict in client.adapters.versions.verdicts(name, number):
        if held_out := verdict["files"].get("held_out"):
            return str(held_out)
    return None


def _print_plan(steps: list[Step], to: str) -> None:
    if not steps:
        typer.echo(f"Everything that is live serves on {to}.")
        return
    doing = {"train": "train again", "push": "push again", "none": "left as it is"}
    rows = [(step.version, step.base or "-", doing[step.way], step.note) for step in steps]
    terminal.print_table(("LIVE", "BASE", f"FOR {to}", "NOTE"), rows)


def _print_results(steps: list[Step]) -> None:
    rows = [(step.version, step.made or "-", "yes" if step.is_live else "no", step.note) for step in steps]
    terminal.print_table(("BEFORE", "NOW", "LIVE", "WHY"), rows)
