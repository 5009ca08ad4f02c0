"""`ls` and `show`: adapters, their versions and aliases, as a person wants to read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters.names import DEFAULT_ALIAS, Reference, is_checkpoint_alias
from service.cli import terminal
from service.cli.completion import complete_adapter
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient, JsonObject

if TYPE_CHECKING:
    from service.client.types.adapters import Adapter, AdapterVersion

NO_WEIGHTS: Final = "no weights"
SHOWN_CHARS: Final = 200
"""Characters of a system prompt that `show` prints."""
SLIM: Final = (
    *("adapter", "version", "state", "servable", "held_back", "aliases", "digest", "rank", "alpha", "target_modules"),
    *("bytes", "created_at", "expires_at", "settings", "warnings", "revalidation"),
)
"""Fields of a version that `show --json` prints as the gateway has them."""
SLIM_VERDICT: Final = ("verdict", "sentence", "metric", "examples", "kind", "evaluation_id", "created_at")
SLIM_SETTINGS: Final = ("grounding", "sampling")


def ls(as_json: AsJson = False) -> None:
    """List the adapters, with the verdict on what each serves as `live`."""
    with terminal.reporting(as_json), HatrackClient() as client:
        adapters = list(client.adapters.list())
    if as_json:
        terminal.print_json([_slim_adapter(adapter) for adapter in adapters])
    elif adapters:
        print_adapters(adapters)
    else:
        typer.echo("No adapters yet. Run `hatrack push NAME DIR` to add one.")


def print_adapters(adapters: list[Adapter]) -> None:
    """Write a table of adapters."""
    rows = []
    for adapter in adapters:
        versions = adapter.get("versions")
        count = len(versions) if isinstance(versions, list) else versions
        aliases = {alias: at for alias, at in _targets(adapter).items() if not is_checkpoint_alias(alias)}
        rows.append(
            (
                str(adapter.get("name")),
                _live_verdict(adapter),
                terminal.pointers(aliases),
                "-" if count is None else str(count),
                _revalidation_counts(versions),
                "pinned" if adapter.get("pinned") else "-",
                terminal.when(adapter.get("created_at")),
            )
        )
    columns = ("ADAPTER", "VERDICT", "ALIASES", "VERSIONS", "JUDGED", "PINNED", "CREATED")
    terminal.print_table(columns, rows)


def _live_verdict(adapter: Adapter) -> str:
    """The verdict on the live version; of a split, on each, by its number. `-` where there is none."""
    live = _targets(adapter).get(DEFAULT_ALIAS)
    versions = {version["version"]: version for version in adapter.get("versions") or []}
    if isinstance(live, dict):
        numbers = [int(number) for number in live]
        return " ".join(f"{number}:{terminal.verdict(versions[number])}" for number in numbers if number in versions)
    return terminal.verdict(versions[live]) if live in versions else "-"


def _revalidation_counts(versions: Any) -> str:
    """How many versions are fresh, due and failed; `-` where none was judged."""
    revalidations = [version.get("revalidation") for version in versions or [] if isinstance(version, dict)]
    states = Counter(str(state["state"]) for state in revalidations if isinstance(state, dict))
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "-"


def _targets(adapter: Adapter) -> dict[str, Any]:
    """Where each alias points: a version's number, or the weights of a split."""
    return {**(adapter.get("aliases") or {}), **(adapter.get("splits") or {})}


def show(
    reference: Annotated[
        str,
        typer.Argument(help="brand-voice, brand-voice@3 or brand-voice:canary.", autocompletion=complete_adapter),
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Show every field of a version: proof, base, metadata. With --json, as is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show an adapter with its versions, or one version.

    --json prints what scripts need of it; `--json --full` prints all that the gateway says, with proof and lineage.
    """
    target = terminal.reference_argument(reference)
    with terminal.reporting(as_json), HatrackClient() as client:
        adapter = client.adapters.retrieve(target.name) if target.version is None else None
        number = _number(adapter, target) if adapter is not None else target.version
        version = None if number is None else client.adapters.versions.retrieve(target.name, number)
    if as_json and full:
        terminal.print_json(version or adapter)
    elif as_json:
        terminal.print_json(_slim_adapter(adapter) if version is None and adapter is not None else _slim(version or {}))
    elif version is not None:
        terminal.print_table(("FIELD", "VALUE"), _all_fields(version) if full else _summary(version))
    elif adapter is not None:
        _print_adapter(adapter)


def _number(adapter: Adapter, target: Reference) -> int | None:
    """The version that a reference's alias points at; None where it names the adapter. Raises ClientError."""
    if target.alias is None:
        return None
    number = _targets(adapter).get(target.alias)
    if isinstance(number, dict):
        names = ", ".join(f"{target.name}@{version}" for version in number)
        raise ClientError(0, "alias_split", f"{target.label} is a split; name one of {names}.", "reference")
    if number is None:
        raise ClientError(404, "not_found", f"{target.name} has no alias {target.alias}.")
    return int(number)


def _slim_adapter(adapter: Adapter) -> JsonObject:
    """What scripts need of an adapter: its fields, and slim versions without their settings."""
    versions = [_slim(version) for version in adapter.get("versions") or []]
    for version in versions:
        version.pop("settings", None)
    return {**adapter, "versions": versions}


def _slim(version: Mapping[str, Any]) -> JsonObject:
    """What scripts need of a version: `SLIM`, its verdict in short, and the job that made it."""
    slim = {name: version[name] for name in (*SLIM, "reason") if name in version}
    verdict = version.get("verdict")
    slim["verdict"] = {name: verdict.get(name) for name in SLIM_VERDICT} if verdict else None
    slim["job"] = ((version.get("metadata") or {}).get("lineage") or {}).get("job")
    return slim


def _print_adapter(adapter: Adapter) -> None:
    pinned = "   pinned" if adapter.get("pinned") else ""
    typer.echo(terminal.clean(f"{adapter.get('name')}   {terminal.pointers(_targets(adapter))}{pinned}"))
    aliases = adapter.get("aliases") or {}
    rows = []
    for version in adapter.get("versions") or []:
        pointing = [alias for alias, target in aliases.items() if target == version.get("version")]
        rows.append(
            (
                f"@{version.get('version')}",
                terminal.verdict(version),
                _state(version),
                terminal.pointers(version.get("aliases") or pointing),
                terminal.judged(version),
                f"{terminal.size(version.get('bytes'))}, rank {version.get('rank')}"
                if version.get("digest")
                else NO_WEIGHTS,
                terminal.when(version.get("created_at")),
                str(version.get("digest") or "-")[:12],
            )
        )
    columns = ("VERSION", "VERDICT", "STATE", "ALIASES", "JUDGED", "WEIGHTS", "CREATED", "DIGEST")
    terminal.print_table(columns, rows)


def _state(version: AdapterVersion) -> str:
    """`ready`, or why it is not served: `proving`, `rejected`, `held back`, `damaged`."""
    state = str(version.get("state", "-"))
    servable = terminal.servable(version)
    return servable if state == "ready" and servable not in ("ok", "-") else state


def _summary(version: AdapterVersion) -> list[tuple[str, str]]:
    """What a person asks of a version, the most important first."""
    label = f"{version.get('adapter')}@{version['version']}"
    rows = [("version", label), ("verdict", _verdict_sentence(version, label)), ("state", _state(version))]
    if held_back := version.get("held_back"):
        rows.append(("held back", f"{held_back.get('message')}; `hatrack promote {label} --force` makes it live"))
    if reason := version.get("reason"):
        rows.append(("rejected", str(reason.get("message"))))
    rows += [("judged", terminal.judged(version)), ("aliases", terminal.pointers(version.get("aliases")))]
    rows += [*_settings_rows(version.get("settings") or {}), ("weights", _weights(version))]
    if proof := _proof(version.get("proof") or {}):
        rows.append(("proof", proof))
    rows.append(("made by", _maker(version, label)))
    rows.append(("created", terminal.when(version.get("created_at"))))
    if version.get("expires_at"):
        rows.append(("expires", terminal.when(version.get("expires_at"))))
    rows.append(("digest", str(version.get("digest") or "-")))
    return rows + [("warning", terminal.message_text(warning)) for warning in version.get("warnings") or []]


def _maker(version: AdapterVersion, label: str) -> str:
    """What made the version: a job, a push from a source, or an upload."""
    metadata = version.get("metadata") or {}
    if job := (metadata.get("lineage") or {}).get("job"):
        return f"{job}; `hatrack lineage {label}` shows from what"
    source = metadata.get("source")
    return f"a push from {source['url']}" if isinstance(source, dict) and source.get("url") else "an upload"


def _verdict_sentence(version: AdapterVersion, label: str) -> str:
    verdict = version.get("verdict")
    if not verdict:
        return f"none; `hatrack evaluate {label} --held-out FILE` judges it"
    return f"{terminal.verdict(version)}: {verdict.get('sentence')}"


def _settings_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if prompt := settings.get("system_prompt"):
        rows.append(("system prompt", prompt if len(prompt) <= SHOWN_CHARS else f"{prompt[:SHOWN_CHARS]}…"))
    if examples := settings.get("examples"):
        rows.append(("examples", f"{len(examples)} before every conversation"))
    for group in SLIM_SETTINGS:
        if pairs := settings.get(group):
            text = " ".join(f"{name}={_value(value)}" for name, value in pairs.items() if value is not None)
            rows.append((group, text))
    return rows


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _weights(version: AdapterVersion) -> str:
    if not version.get("digest"):
        return f"{NO_WEIGHTS}: the base answers, with these settings"
    modules = version.get("target_modules")
    named = " ".join(map(str, modules)) if isinstance(modules, list) else str(modules or "-")
    return (
        f"{terminal.size(version.get('bytes'))}, rank {version.get('rank')}, alpha {version.get('alpha')}, of {named}"
    )


def _proof(proof: Mapping[str, Any]) -> str:
    """The proof in words; empty where there is none."""
    if proof.get("kind") == "settings":
        return f"its prompt has {proof.get('prompt_tokens')} of {proof.get('context_tokens')} tokens"
    words = [str(proof["effect"])] if "effect" in proof else []
    if perplexity := proof.get("perplexity"):
        words.append(f"perplexity of plain text {float(perplexity['ratio']):.3g} times the base's")
    return ", ".join(words)


def _all_fields(version: AdapterVersion) -> list[tuple[str, str]]:
    """Every field, nested ones with dotted names; long lists (log-probabilities) are for --json."""
    rows = [("version", f"{version.get('adapter')}@{version['version']}")]
    rows += [("state", str(version.get("state", "-"))), ("servable", terminal.servable(version))]
    rows += [("aliases", terminal.pointers(version.get("aliases"))), ("digest", version.get("digest") or NO_WEIGHTS)]
    if version.get("digest"):
        rows += [("rank", str(version.get("rank"))), ("alpha", str(version.get("alpha")))]
        modules = version.get("target_modules")
        rows.append(("modules", " ".join(map(str, modules)) if isinstance(modules, list) else str(modules or "-")))
        rows += [("size", terminal.size(version.get("bytes")))]
    rows += [("created", terminal.when(version.get("created_at")))]
    if version.get("expires_at"):
        rows.append(("expires", terminal.when(version.get("expires_at"))))
    rows += [("judged", terminal.judged(version))]
    for group in ("held_back", "verdict", "base", "settings", "metadata", "proof"):
        rows += _scalars(group, version.get(group))
    return rows + [("warning", terminal.message_text(warning)) for warning in version.get("warnings") or []]


def _scalars(prefix: str, value: Any) -> list[tuple[str, str]]:
    """The plain values in a nested object, with dotted names."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _scalars(f"{prefix}.{key}", item)]
    if isinstance(value, list):
        return [(prefix, f"{len(value)} values (see --json --full)")]
    return [] if value is None else [(prefix, str(value))]
