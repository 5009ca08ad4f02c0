"""`cost` and `budget`: device time and money, of what was done, of a year, and what projects may spend in a month."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adapters.costs import amount_text
from adapters.wording import counted
from service.cli import terminal
from service.cli.terminal import AsJson
from service.cli.usage import moment
from service.client import HatrackClient

if TYPE_CHECKING:
    from service.client.types.costs import Budget, CostPage, CostRow, JobEstimate, YearAnswer, YearVersion

BY: Final = ("adapter", "version", "project", "key")
WIDTH: Final = 80
NAME_CHARS: Final = 22
"""Longest name in a table of that width …"""
NARROW_NAME_CHARS: Final = 16
"""… and in one that also has what endpoints outside charged."""
RECIPE: Final = (
    "n_epochs",
    "learning_rate",
    "batch_size",
    "lora_rank",
    "lora_alpha",
    "max_length",
    "quantization",
    "early_stopping_patience",
    "beta",
)
"""The hyperparameters that have the value which was requested, or a reason in the plan."""


def cost(
    by: Annotated[str, typer.Option(help=f"Group by {', '.join(BY)}.")] = "adapter",
    since: Annotated[
        str, typer.Option(help="Start: 90m, 12h, 7d or 4w ago, or a UTC date such as 2026-01-31.")
    ] = "30d",
    until: Annotated[str | None, typer.Option(help="End, in the same format as --since. [default: now]")] = None,
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter.")] = None,
    year: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead, what a year of this adapter costs, by version.")
    ] = None,
    requests_per_day: Annotated[
        float | None, typer.Option(min=0, help="With --year: the traffic. [default: that of the last 30 days]")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=0, help="With --year: tokens that a long prompt would add to each request.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show device time and money, from measured time of requests and runs. An admin key sees everything."""
    if by not in BY:
        raise typer.BadParameter(f"--by must be one of {', '.join(BY)}; got {by!r}.")
    if year is None and (requests_per_day is not None or prompt_tokens is not None):
        raise typer.BadParameter("--requests-per-day and --prompt-tokens need --year.")
    if year is not None:
        name = terminal.name_argument(year)
        with terminal.reporting(as_json), HatrackClient() as client:
            answer = client.costs.year(name, requests_per_day=requests_per_day, prompt_tokens=prompt_tokens)
        terminal.print_json(answer) if as_json else _print_year(answer)
        return
    start, end = moment(since, "--since"), None if until is None else moment(until, "--until")
    with terminal.reporting(as_json), HatrackClient() as client:
        page = client.costs.retrieve(
            start=start, end=end, bucket="hour", group_by=[by], project=project, key=None, adapter=adapter
        )
    terminal.print_json(page) if as_json else _print_page(by, page)


def _print_page(by: str, page: CostPage) -> None:
    rows = page["data"]
    priced = page["prices"]["device_hour"] is not None
    unit = page["currency"] or "MONEY"
    has_outside = any(row["outside"] and row["outside"]["requests"] for row in rows)
    if rows:
        table = [_row(by, row, priced=priced, outside=has_outside) for row in rows]
        if len(rows) > 1:
            table.append(_sum(rows, priced=priced, outside=has_outside))
        shown = ("REQUESTS", "SERVING", "JUDGING", "TRAINING", *(("OUTSIDE",) if has_outside else ()))
        terminal.print_table((by.upper(), *shown, unit if priced else "HOURS", "HOSTED"), table)
    else:
        say("Nothing was asked and nothing was trained in that time.")
    engine = page["engine"]
    if engine is not None:
        idle = "" if engine["idle_money"] is None else f" ({money(engine['idle_money'], page['currency'])})"
        say(
            f"Engine: busy {span(engine['busy_seconds'])}, of that {span(engine['own_seconds'])} for proofs; "
            f"idle {span(engine['idle_seconds'])}{idle}."
        )
        if engine["measured_since"] is None or engine["measured_since"] > page["start"]:
            since = (
                "not yet" if engine["measured_since"] is None else f"since {terminal.when(engine['measured_since'])}"
            )
            say(f"Engine time is measured {since}; earlier requests count as 0.")
    unpriced = sum(row["outside"]["unpriced_requests"] for row in rows if row["outside"])
    if unpriced:
        say(
            f"OUTSIDE is not known: {unpriced:,} of the requests to endpoints outside have no known price "
            "(`price_input` and `price_output` in HATRACK_TRAINER_ENDPOINTS)."
        )
    if not page["runs"]["available"]:
        say(f"The time of training is not available: {terminal.clean(page['runs']['reason'] or '')}")
    if not priced:
        say("No price is set (HATRACK_PRICE_DEVICE_HOUR), so there are only hours.")
    for budget in page["budgets"]:
        say(budget_line(budget, page["currency"]))


def _row(by: str, row: CostRow, *, priced: bool, outside: bool) -> list[str]:
    seconds = row["seconds"]
    return [
        _name(by, row, NARROW_NAME_CHARS if outside else NAME_CHARS),
        f"{row['requests']:,}",
        span(seconds["serving"]),
        span(seconds["evaluating"]),
        span(seconds["training"]),
        *([amount(_outside(row), unknown="?")] if outside else []),
        _total(row, priced=priced),
        amount(row["hosted"]),
    ]


def _outside(row: CostRow) -> float | None:
    """What endpoints outside charged; None if that is not known."""
    return None if row["outside"] is None else row["outside"]["money"]


def _total(row: CostRow, *, priced: bool) -> str:
    if not priced:
        return amount(row["device_hours"], unknown="?")
    return "?" if row["money"] is None else amount(row["money"]["total"], unknown="?")


def _sum(rows: list[CostRow], *, priced: bool, outside: bool) -> list[str]:
    """The last line."""
    seconds = [row["seconds"] for row in rows]
    totals = [row["money"]["total"] if priced and row["money"] else row["device_hours"] for row in rows]
    whole = _added(totals)
    return [
        "total",
        f"{sum(row['requests'] for row in rows):,}",
        span(_added([each["serving"] for each in seconds])),
        span(_added([each["evaluating"] for each in seconds])),
        span(_added([each["training"] for each in seconds])),
        *([amount(_added([_outside(row) for row in rows]), unknown="?")] if outside else []),
        amount(whole, unknown="?"),
        amount(_added([row["hosted"] for row in rows])),
    ]


def _added(parts: Sequence[float | None]) -> float | None:
    """The sum; what is not known of one is not known of all."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _name(by: str, row: CostRow, max_chars: int) -> str:
    if by == "project":
        name = str(row.get("project"))
    elif by == "key":
        name = str(row.get("key_name") or row.get("key"))
    else:
        # a key may ask a teacher outside, of which nobody knows yet what for
        name = row.get("adapter") or ("(no such model)" if row["requests"] else "(labelling)")
        if by == "version" and row.get("version") is not None:
            name = f"{name}@{row.get('version')}"
    return name if len(name) <= max_chars else f"{name[: max_chars - 1]}…"


# a year


def _print_year(year: YearAnswer) -> None:
    traffic, currency = year["traffic"], year["currency"]
    sources = {
        "given": "as given",
        "usage": f"{traffic['requests']:,} in {traffic['days']:.1f} days, scaled",
        "setting": "HATRACK_REQUESTS_PER_MONTH; no caller has asked it yet",
    }
    say(f"{year['adapter']}: a year of {traffic['requests_per_year']:,} requests ({sources[traffic['source']]})")
    columns = ("VERSION", "TOKENS", "REQUESTS", "RETRAIN", "JUDGING", "DATA", "CHECKS", currency or "TOTAL", "HOURS")
    terminal.print_table(columns, [_year_row(version) for version in year["versions"]])
    say("Tokens are those of a request, in + out; hours those of the device + of people's work.")
    rhythm, training = year["rhythm"], year["training"]
    say(
        f"Rhythm: {rhythm['retrainings_per_year']} retrainings, {rhythm['revalidations_per_year']:.1f} revalidations, "
        f"people check {rhythm['checked_share']:.0%} of the number of training examples each time."
    )
    if training is not None:
        say(
            f"Last training: {training['job']}, {span(training['seconds'])}, "
            f"{counted(training['examples'], 'example')}."
        )
    elif not year["runs"]["available"]:
        say(f"The last training is not available: {terminal.clean(year['runs']['reason'] or '')}")
    rule = next((v["year"]["rule_of_thumb"] for v in year["versions"] if v["year"]["rule_of_thumb"]), None)
    if rule:
        low, high = (money(each, currency) for each in rule)
        say(f"The field's rule of thumb, 3 to 5 times the cost of one training: {low} to {high}.")
    prompt = year["long_prompt"]
    if prompt is not None:
        hosted = "" if prompt["hosted"] is None else f", {money(prompt['hosted'], currency)} at a hosted model"
        say(
            f"A long prompt of {prompt['tokens_per_request']:,.0f} more tokens: {prompt['tokens_per_year']:,} tokens "
            f"a year{hosted}."
        )


def _year_row(version: YearVersion) -> list[str]:
    year, request = version["year"], version["request"]
    tokens = "-" if request is None else f"{request['prompt_tokens']:.0f}+{request['completion_tokens']:.0f}"
    parts = (year["requests"], year["retraining"], year["judging"], year["data"], year["checks"], year["total"])
    return [
        f"@{version['version']}{' live' if version['live'] else ''}",
        tokens,
        *(amount(part, unknown="?") for part in parts),
        f"{year['device_hours']:.0f}+{year['people_hours']:.0f}",
    ]


# before a job


def print_estimate(estimate: JobEstimate, as_json: bool) -> None:
    """What a job will take and cost."""
    if as_json:
        terminal.print_json(estimate)
        return
    seconds, costs, speed = estimate["seconds"], estimate["money"], estimate["speed"]
    source = (
        f"measured on {speed['jobs']} past job{'s' * (speed['jobs'] != 1)}"
        if speed["source"] == "record"
        else "measured now, by a few steps"
    )
    say(
        f"{estimate['adapter']}: {counted(estimate['examples'], 'example')}, {counted(estimate['epochs'], 'epoch')}, "
        f"{estimate['tokens']:,} tokens "
        f"at {speed['tokens_per_second']:,.0f} tokens/s ({source}, {estimate['device']})."
    )
    rows = []
    for name, label in (
        ("starting", "starting"),
        ("training", "training, at most"),
        ("judging", "judging"),
        ("total", "total"),
    ):
        value, price = seconds[name], None if costs is None else costs[name]  # type: ignore[literal-required]
        rows.append([label, span(value), amount(price, unknown="?" if costs is not None else "-")])
    terminal.print_table(("", "TIME", estimate["currency"] or "MONEY"), rows)
    typer.echo()
    terminal.print_table(("HYPERPARAMETER", "VALUE", "WHY"), _recipe_rows(estimate))
    if seconds["judging"] is None:
        say("No job on this base has been judged yet, so nothing tells how long the judging takes.")
    if costs is None:
        say("No price is set (HATRACK_PRICE_DEVICE_HOUR), so there is only time.")


def _recipe_rows(estimate: JobEstimate) -> list[list[str]]:
    """Each hyperparameter with its value and the reason for it."""
    values, plan = estimate["hyperparameters"], estimate["plan"]
    rows = []
    for name in (*RECIPE, *(name for name in plan["chosen"] if name not in RECIPE)):
        if name in plan["chosen"]:
            value, _, why = plan["chosen"][name].partition(": ")
            rows.append([name, value, f"auto: {why}"])
        elif name in values:
            rows.append([name, _shown(values[name]), "as requested"])  # type: ignore[literal-required]
    for name, default in values.items():
        if name not in {*RECIPE, *plan["chosen"], "learning_rate_multiplier"}:
            rows.append([name, _shown(default), "the default, unless requested"])
    primary = plan["primary"]
    return rows if primary is None else [*rows, ["metric", primary["name"], primary["why"]]]


def _shown(value: object) -> str:
    """A hyperparameter's value."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# budgets


def budget(
    project: Annotated[str | None, typer.Argument(help="Set or remove this project's budget.")] = None,
    monthly: Annotated[
        float | None, typer.Argument(help="What it may spend in a calendar month (UTC), in the operator's currency.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the project's budget.")] = False,
    as_json: AsJson = False,
) -> None:
    """List budgets, or set a project's (needs an admin key). A spent budget refuses requests and new runs."""
    if (monthly is None) == (not remove) and project is not None:
        raise typer.BadParameter("give PROJECT with an amount, or with --remove.")
    if project is None and remove:
        raise typer.BadParameter("--remove needs a PROJECT.")
    with terminal.reporting(as_json), HatrackClient() as client:
        if project is not None and remove:
            removed = client.budgets.delete(project)
            terminal.print_json(removed) if as_json else say(f"{project} has no budget any more.")
            return
        if project is not None and monthly is not None:
            client.budgets.set(project, monthly)
        budgets = client.budgets.list()
    if as_json:
        terminal.print_json(budgets)
    elif budgets:
        for each in budgets:
            say(budget_line(each))
    else:
        say("No budgets. Set one: hatrack budget PROJECT AMOUNT")


def budget_line(budget: Budget, currency: str | None = None) -> str:
    """A budget as a sentence."""
    spent = "?" if budget["spent"] is None else money(budget["spent"], currency)
    state = "; spent: requests and new runs are refused" if budget["exhausted"] else ""
    known = "" if budget["runs_available"] else " (without training: the trainer does not answer)"
    until = terminal.when(budget["resets_at"])[:10]
    return terminal.clean(
        f"Budget of {budget['project']}: {spent} of {money(budget['monthly'], currency)} until {until}{known}{state}."
    )


# words


def say(text: str) -> None:
    """Write a sentence to stdout, in lines of 80 columns."""
    typer.echo(textwrap.fill(terminal.clean(text), WIDTH, break_on_hyphens=False))


def span(seconds: float | None) -> str:
    """Seconds in the unit that fits: `4.2 s`, `12.5 min`, `3.1 h`; `?` for what is not available."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def amount(value: float | None, *, unknown: str = "-") -> str:
    """An amount with as many digits as it needs."""
    return unknown if value is None else amount_text(value)


def money(value: float, currency: str | None) -> str:
    """An amount with its currency, if that is known."""
    return f"{amount(value)} {currency}" if currency else amount(value)
