"""`revalidate`: versions judged again, because the engine around them has changed or their verdict is old."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer

from adapters.names import Reference
from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, ClientError, HatrackClient, JsonObject

POLL_S: Final = 2.0
NOT_FOUND: Final = 404
VERSION_ERRORS: Final = frozenset({400, NOT_FOUND, 409})
"""Answers that say something of one version and nothing of the next."""


def revalidate(
    reference: Annotated[
        str | None,
        typer.Argument(metavar="[NAME[@VERSION]]", help="An adapter, or one version. [default: all adapters]"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Include versions that are not due.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all have finished; exit code 1 if one failed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Revalidate the versions that are due: repeat the evaluation of each one's latest verdict."""
    target = None if reference is None else terminal.reference_argument(reference)
    with terminal.reporting(as_json), HatrackClient() as client:
        started, left = _begin(client, target, every)
        while wait:
            _wait(client, started)
            known = {_what(item) for item in started}
            more, left = _begin(client, target, every) if left else ([], 0)
            more = [item for item in more if _what(item) not in known]
            started += more
            if not any(item["evaluation"] for item in more):
                break
        if wait:
            _refresh(client, started)
    if as_json:
        terminal.print_json(started)
    elif started:
        _print(started, left)
    else:
        typer.echo("Nothing is due.")
    if any(_failed(item) for item in started):
        raise typer.Exit(terminal.FAILED)


def _begin(client: HatrackClient, target: Reference | None, every: bool) -> tuple[list[JsonObject], int]:
    """Versions with the evaluations that judge them again, and how many are left for another time."""
    if target is None:
        page = client.revalidations.create(all_versions=every)
        return [dict(item) for item in page.get("data") or []], int(page.get("left") or 0)
    if target.version is not None:
        return [_item(client, target.name, target.version, [])], 0
    adapter = client.adapters.retrieve(target.name)
    versions = adapter.get("versions") or []
    if target.alias is not None:
        number = (adapter.get("aliases") or {}).get(target.alias)
        if number is None:
            raise ClientError(404, "not_found", f"{target.name} has no alias {target.alias} to a single version.")
        versions, every = [version for version in versions if version["version"] == number], True
    judged = [(version["version"], version.get("revalidation")) for version in versions]
    return [
        _item_or_error(client, target.name, number, list(revalidation.get("reasons") or []))
        for number, revalidation in judged
        if revalidation and (every or revalidation["reasons"])
    ], 0


def _item(client: HatrackClient, name: str, number: int, reasons: list[str]) -> JsonObject:
    evaluation = client.adapters.versions.revalidate(name, number)
    return {"version": f"{name}@{number}", "reasons": reasons, "evaluation": evaluation, "error": None}


def _item_or_error(client: HatrackClient, name: str, number: int, reasons: list[str]) -> JsonObject:
    """One of several: what cannot be judged again keeps none of the others from it."""
    try:
        return _item(client, name, number, reasons)
    except ClientError as error:
        if error.status not in VERSION_ERRORS:
            raise
        return {"version": f"{name}@{number}", "reasons": reasons, "evaluation": None, **error.payload()}


def _what(item: JsonObject) -> str:
    """What tells one line from another: the evaluation, or the version that has none."""
    return str(item["evaluation"]["id"] if item["evaluation"] else item["version"])


def _refresh(client: HatrackClient, started: list[JsonObject]) -> None:
    """Ask for each version whose verdict does not say it whether it has failed: it has if it had passed before."""
    for item in started:
        if item["evaluation"] and item["evaluation"].get("verdict") == "not_enough_evidence":
            name, _, number = str(item["version"]).partition("@")
            try:
                version = client.adapters.versions.retrieve(name, int(number))
            except ClientError as error:
                if error.status != NOT_FOUND:
                    raise
                continue
            item["revalidation"] = version.get("revalidation")


def _wait(client: HatrackClient, started: list[JsonObject]) -> None:
    """Ask for each evaluation until all have ended."""
    while True:
        running = [item for item in started if item["evaluation"] and _is_running(item)]
        if not running:
            return
        for item in running:
            item["evaluation"] = client.evaluations.retrieve(item["evaluation"]["id"])
        if any(map(_is_running, running)):
            time.sleep(POLL_S)


def _is_running(item: JsonObject) -> bool:
    return item["evaluation"].get("status") not in FINAL_STATUSES


def _failed(item: JsonObject) -> bool:
    evaluation = item["evaluation"]
    if evaluation is None:
        return True
    if (item.get("revalidation") or {}).get("state") == "failed":
        return True
    return evaluation.get("verdict") == "fail" or evaluation.get("status") in ("failed", "cancelled")


def _print(started: list[JsonObject], left: int) -> None:
    rows = []
    for item in started:
        evaluation: dict[str, Any] = item["evaluation"] or {}
        message = (item.get("error") or {}).get("message") or evaluation.get("sentence")
        rows.append(
            (
                str(item["version"]),
                " ".join(item["reasons"]) or "-",
                str(evaluation.get("id", "-")),
                str(evaluation.get("verdict") or evaluation.get("status") or "refused"),
                str(message or "-"),
            )
        )
    terminal.print_table(("VERSION", "CHANGED", "EVALUATION", "STATUS", "SENTENCE"), rows)
    if left:
        typer.echo(f"{left} more are due; run this again when these have finished.")
