"""`review`: people look at pairs of answers, blind, one key a pair."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

import typer
from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient

if TYPE_CHECKING:
    from service.client.evaluations import Choice
    from service.client.types.reviews import Agreement, HumanPreference, Review, ReviewQueue

KEYS: Final[dict[str, Choice]] = {"1": "first", "2": "second", "t": "tie"}
SKIP: Final = "s"
QUIT: Final = "q"
HELP: Final = "1 the first is better   2 the second   t tie   s skip   q quit"
BESIDE_COLUMNS: Final = 100
"""Narrower terminals show one answer under the other."""
NOTHING: Final = (
    "Nothing to review. Evaluations with a judge add pairs for people to review; `hatrack review EVALUATION --start` "
    "draws some from any other evaluation that has ended."
)


def review(
    evaluation: Annotated[
        str | None, typer.Argument(metavar="[EVALUATION]", help="eval-… or ftjob-… [default: the newest with pairs]")
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="First draw pairs from the evaluation's stored answers, without a judge.")
    ] = False,
    pairs: Annotated[
        int | None, typer.Option(min=1, max=1000, help="With --start: how many pairs to draw.  [default: 50]")
    ] = None,
    reviewers: Annotated[
        int | None,
        typer.Option(min=1, max=5, help="With --start: how many keys choose on each pair.  [default: 1]"),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Only show the progress and the outcome of the reviews.")
    ] = False,
    end: Annotated[
        bool, typer.Option("--end", help="Take no more choices; show what people prefer by those made so far.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --end: skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose the better of two answers, without knowing whose they are. A judge counts only if people agree with it."""
    if start and (evaluation is None or list_only):
        raise typer.BadParameter("--start needs EVALUATION, and does not go with --list.")
    if end and (evaluation is None or start or list_only):
        raise typer.BadParameter("--end needs EVALUATION, and does not go with --start and --list.")
    if yes and not end:
        raise typer.BadParameter("--yes goes with --end.")
    if end and not yes and sys.stdin.isatty():
        typer.confirm(f"End the review of {evaluation}? Nobody can choose any more.", abort=True, err=True)
    if not start and (pairs is not None or reviewers is not None):
        raise typer.BadParameter("--pairs and --reviewers go with --start.")
    with terminal.reporting(as_json), HatrackClient() as client:
        if end:
            _print_ended(client.reviews.end(str(evaluation)), as_json)
            return
        if start and evaluation is not None:
            queue = client.reviews.create(evaluation, pairs=pairs, reviewers=reviewers)
            if as_json:
                terminal.print_json(queue)
                return
            typer.echo(f"{queue['pairs']} pair{'' if queue['pairs'] == 1 else 's'} to review.")
        elif as_json or list_only:
            _list(list(client.reviews.list()), as_json)
            return
        _ask(client, evaluation)


def _print_ended(queue: ReviewQueue, as_json: bool) -> None:
    if as_json:
        terminal.print_json(queue)
        return
    people = queue.get("people")
    if people is not None:
        typer.echo(terminal.clean(people["sentence"]))
    if people is None or queue["judge"] is not None:
        typer.echo(terminal.clean(str(queue["sentence"])))


def _list(queues: list[ReviewQueue], as_json: bool) -> None:
    if as_json:
        terminal.print_json(queues)
    elif not queues:
        typer.echo(NOTHING)
    else:
        rows = [
            [
                str(queue["id"]),
                f"{queue['reviewed']} of {queue['pairs']}",
                _people(queue.get("people")),
                queue["judge"] or "-",
                _kappa(queue["agreement"]),
                _kappa(queue["standing"]),
                "-" if queue["judge"] is None else "yes" if queue["counted"] else "no",
                _lean(queue["standing"]),
                _more(queue),
            ]
            for queue in queues
        ]
        headers = ["EVALUATION", "REVIEWED", "PEOPLE PREFER IT", "JUDGE", "KAPPA", "KAPPA IN ALL", "COUNTS"]
        terminal.print_table([*headers, "LEAN IN ALL", "MORE REVIEWS"], rows)


def _people(figure: HumanPreference | None) -> str:
    """How many of 100 people prefer the candidate, ties counting half; 50 is even."""
    if figure is None:
        return "-"
    return f"{100 * figure['mean']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f}; 50 is even)"


def _kappa(agreement: Agreement | None) -> str:
    if agreement is None or agreement.get("kappa") is None:
        return "-"
    return f"{agreement['kappa']:.2f} ({agreement['low']:.2f} to {agreement['high']:.2f}, {agreement['pairs']} pairs)"


def _lean(agreement: Agreement | None) -> str:
    """How many points of 100 more the judge gives the candidate than people do."""
    if agreement is None:
        return "-"
    lean, low, high = agreement.get("lean"), agreement.get("lean_low"), agreement.get("lean_high")
    if lean is None or low is None or high is None:
        return "-"
    return f"{100 * lean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _more(queue: ReviewQueue) -> str:
    more = queue.get("more_reviews")
    return "-" if more is None else str(more)


def _ask(client: HatrackClient, evaluation: str | None) -> None:
    console = Console(highlight=False)
    skipped: str | None = None
    reviewed = 0
    while True:
        answer = client.reviews.next(evaluation, after=skipped)
        pair = answer.get("review")
        if pair is None:
            _end(client, evaluation or answer.get("evaluation"), skipped is not None, reviewed)
            return
        evaluation = str(pair["evaluation"])
        show(console, pair, int(answer["reviewed"]), int(answer["total"]))
        key = _key()
        if key == QUIT:
            typer.echo(f"{reviewed} reviewed. Run `hatrack review {evaluation}` to continue.")
            return
        if key == SKIP:
            skipped = str(pair["id"])
            continue
        try:
            client.reviews.choose(pair["id"], KEYS[key])
        except ClientError as error:
            if error.code != "review_taken":
                raise
            typer.echo("Other reviewers have just made the last choices on this pair.")
            continue
        reviewed += 1


def _end(client: HatrackClient, evaluation: object, skipped: bool, reviewed: int) -> None:
    if evaluation is None:
        typer.echo(NOTHING)
        return
    typer.echo(f"{reviewed} reviewed." + (" Skipped pairs will be shown again next time." if skipped else ""))
    for queue in client.reviews.list():
        if queue["id"] != evaluation:
            continue
        people = queue.get("people")
        if people is not None:
            typer.echo(terminal.clean(people["sentence"]))
        if queue["judge"] is not None and queue["final"]:
            typer.echo(terminal.clean(str(queue["sentence"])))
        if not queue["final"] and not skipped and queue.get("reviewers", 1) > 1:
            typer.echo(
                "Other reviewers have yet to choose; what people prefer is shown once all have, or at "
                f"`hatrack review {evaluation} --end`."
            )


def show(console: Console, pair: Review, reviewed: int, total: int) -> None:
    """Write a pair: what was asked, and both answers side by side where there is room."""
    console.print(Rule(f"{reviewed + 1} of {total}"))
    for turn in pair["asked"]:
        console.print(Text(f"{turn['role']}: ", style="bold"), _plain(turn["content"]), sep="")
    if pair.get("reference"):
        console.print(Text("the author answered: ", style="dim"), _plain(pair["reference"]), sep="")
    wide = console.width >= BESIDE_COLUMNS
    width = console.width // 2 - 1 if wide else console.width
    panels = [
        Panel(_plain(pair["first"]), title="1", width=width),
        Panel(_plain(pair["second"]), title="2", width=width),
    ]
    console.print(Columns(panels, padding=(0, 1)) if wide else Group(*panels))


def _plain(text: object) -> Text:
    """What models say steers no terminal."""
    return Text(terminal.clean(str(text)))


def _key() -> Literal["1", "2", "t", "s", "q"]:
    """One key from a terminal, one line from a pipe; the end of either is `q`."""
    while True:
        typer.echo(f"[{HELP}] ", nl=False)
        try:
            pressed = _pressed().lower() if _by_key() else input().strip().lower()
        except (EOFError, KeyboardInterrupt):
            pressed = QUIT
        typer.echo(pressed if _by_key() else "")
        if pressed in (*KEYS, SKIP, QUIT):
            return cast(Literal["1", "2", "t", "s", "q"], pressed)


def _pressed() -> str:
    """One key, without a line feed; what was typed ahead counts, which typer's own function throws away."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        return os.read(sys.stdin.fileno(), 1).decode("ascii", "replace") or QUIT
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _by_key() -> bool:
    return sys.stdin.isatty()
