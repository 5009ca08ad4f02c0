"""`push promote rollback rm` and `alias rm`: what changes adapters, their versions and aliases."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters.names import DEFAULT_ALIAS
from adapters.sources import is_source
from service.cli import terminal
from service.cli.completion import complete_adapter, complete_store
from service.cli.grounding import InsertAs, RequiredFilters, set_grounding
from service.cli.terminal import AsJson, examples
from service.client import AdapterDirectory, ClientError, HatrackClient, read_examples, read_json_object

if TYPE_CHECKING:
    from service.client.adapters import PushProgress
    from service.client.types.adapters import AdapterAlias, AdapterVersion

_FILE = {"exists": True, "dir_okay": False, "readable": True}
MAX_PATH_CHARS: Final = 1024
NOTHING_TO_PUSH: Final = (
    "Name a directory with weights, or give a version without weights at least one of --system-prompt, --examples, "
    "--kb, --temperature and --settings."
)


alias = typer.Typer(help="Aliases: names such as `live` and `canary` that point to versions.", no_args_is_help=True)
Weights = Annotated[
    str | None,
    typer.Argument(
        metavar="DIR|SOURCE",
        help="The directory written by PEFT's save_pretrained; or hf://ORG/REPO@REVISION, s3://BUCKET/FOLDER or "
        "https://HOST/FOLDER, which the gateway fetches if its HATRACK_SOURCES allows it. Without it the version has "
        "no weights: the base answers, with the settings below.",
        show_default=False,
    ),
]
AliasToMove = Annotated[
    str | None,
    typer.Option(
        help="Alias to move to the new version [default: live for a name's first version, none later].",
        callback=terminal.alias_option,
    ),
]
SystemPrompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|FILE",
        help="The system prompt of requests that bring none; for weights, the one that they were trained with.",
    ),
]
FixedExamples = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSONL of questions and answers that stand before every conversation.", **_FILE),
]
Stores = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STORE",
        help="Ground answers in this store, by name or id. May be repeated.",
        autocompletion=complete_store,
    ),
]
SettingsFile = Annotated[Path | None, typer.Option(help="JSON file of settings [default: DIR/settings.json].", **_FILE)]
MetadataFile = Annotated[Path | None, typer.Option(help="JSON file of metadata [default: DIR/metadata.json].", **_FILE)]


Base = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The base that it is for, where the gateway serves several [default: what adapter_config.json names, else "
        "the first].",
    ),
]


def _sha256_option(text: str | None) -> str | None:
    if text is not None and re.fullmatch(r"[0-9a-f]{64}", text.lower()) is None:
        raise typer.BadParameter("must be 64 hexadecimal digits.")
    return None if text is None else text.lower()


Sha256 = Annotated[
    str | None,
    typer.Option(metavar="HEX", help="Of a SOURCE: refuse weights with another SHA-256.", callback=_sha256_option),
]


def push(
    name: Annotated[
        str,
        typer.Argument(help="The adapter's name.", callback=terminal.name_argument, autocompletion=complete_adapter),
    ],
    directory: Weights = None,
    alias: AliasToMove = None,
    no_alias: Annotated[
        bool, typer.Option("--no-alias", help="Do not move any alias, even for a first version.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return while the version is still being proven.")] = False,
    system_prompt: SystemPrompt = None,
    examples: FixedExamples = None,
    kb: Stores = None,
    kb_as: InsertAs = None,
    required_filter: RequiredFilters = None,
    temperature: Annotated[float | None, typer.Option(help="Default temperature of requests that set none.")] = None,
    settings: SettingsFile = None,
    metadata: MetadataFile = None,
    sha256: Sha256 = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Add a version of an adapter, of weights or of settings alone, and wait until it is proven."""
    if alias is not None and no_alias:
        raise typer.BadParameter("--alias and --no-alias cannot be combined.")
    address = terminal.source_argument(directory) if directory is not None and is_source(directory) else None
    if sha256 is not None and address is None:
        raise typer.BadParameter("--sha256 is for a SOURCE: the files of a directory are sent as they are.")
    prompt = None if system_prompt is None else text_or_file(system_prompt)
    with terminal.reporting(as_json):
        local = None if directory is None or address is not None else AdapterDirectory.read(directory)
        stored = read_json_object(settings) if settings else dict((local.settings if local else None) or {})
        version_settings = _with_options(stored, prompt, examples, temperature)
        if directory is None and not kb and not any(version_settings.values()):
            raise ClientError(0, "nothing_to_push", NOTHING_TO_PUSH)
        options: dict[str, Any] = {
            "metadata": read_json_object(metadata) if metadata else None,
            "alias": "" if no_alias else alias,
            "base": base,
            "wait": not no_wait,
        }
        with HatrackClient() as client:
            set_grounding(version_settings, client, kb, kb_as, required_filter)
            options["settings"] = version_settings or None
            if address is not None:
                version = _push_from(client, name, address, sha256=sha256, quiet=as_json, **options)
            else:
                total = 0 if local is None else local.weights.stat().st_size
                with _progress(total, no_wait) as progress:
                    version = client.adapters.push(name, local, progress=progress, **options)
    if as_json:
        terminal.print_json(version)
    else:
        _print_pushed(version)


def _push_from(client: HatrackClient, name: str, source: str, *, quiet: bool, **options: Any) -> AdapterVersion:
    """Push what the gateway fetches, with a bar of what has come."""
    with terminal.bytes_bar("asking the source", "fetching", quiet=quiet) as update:

        def show(progress: PushProgress) -> None:
            if progress["stage"] == "fetching":
                update(progress["bytes"], progress["total"])
            else:
                update(0, None, "proving")

        return client.adapters.push_from(name, source, progress=show, **options)


def _with_options(
    settings: dict[str, Any], prompt: str | None, examples: Path | None, temperature: float | None
) -> dict[str, Any]:
    """Settings of a version, with those that options give."""
    given: dict[str, Any] = {}
    if prompt is not None:
        given["system_prompt"] = prompt
    if examples is not None:
        given["examples"] = read_examples(examples)
    if temperature is not None:
        given["sampling"] = {**(settings.get("sampling") or {}), "temperature": temperature}
    return settings | given


def text_or_file(value: str) -> str:
    """The text of the file that ``value`` names, if there is one, else ``value`` itself; a mistake is a usage error."""
    is_name = len(value) <= MAX_PATH_CHARS and "\n" not in value
    path = Path(value)
    if is_name and path.is_file():
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"--system-prompt: {value} cannot be read as UTF-8: {error}") from error
    if is_name and value and not any(char.isspace() for char in value) and ("/" in value or path.suffix):
        raise typer.BadParameter(f"--system-prompt: there is no file {value}; a prompt's text has more than one word.")
    return value


@contextmanager
def _progress(total: int, no_wait: bool) -> Iterator[Callable[[int], None]]:
    """A bar of the bytes sent, on a terminal's stderr; what is left after the last byte is the proof."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("uploading", total=total)
        sent = 0

        def advance(count: int) -> None:
            nonlocal sent
            sent += count
            last = "storing" if no_wait else "proving"
            bar.update(task, completed=sent, description="uploading" if sent < total else last)

        yield advance


def _print_pushed(version: AdapterVersion) -> None:
    label = f"{version.get('adapter')}@{version.get('version')}"
    facts = _weights_facts(version)
    if version.get("aliases"):
        facts.append("alias " + terminal.pointers(version["aliases"]))
    proven_again = version.get("servable") == "corrupt"  # with --no-wait, of one that was there
    state = "corrupt, and is being proven again" if proven_again else version.get("state")
    typer.echo(terminal.clean(f"{label} is {state} ({', '.join(facts)})"))
    for warning in version.get("warnings") or []:
        typer.echo(terminal.clean(f"warning: {terminal.message_text(warning)}"), err=True)
    if held_back := version.get("held_back"):
        held = f"{label} is held back from live: {terminal.message_text(held_back)}. It answers as {label}; "
        typer.echo(terminal.clean(f"warning: {held}run `hatrack promote {label} --force` to make it live."), err=True)
    if proven_again or version.get("state") == "proving":
        typer.echo(terminal.clean(f"To follow the proof, run `hatrack show {label}`."))


def _weights_facts(version: AdapterVersion) -> list[str]:
    """What a version is made of, in short: `rank 16`, `1.2 MiB`; or that it has no weights, and what it has instead."""
    if version.get("digest") is not None:
        return [f"rank {version.get('rank')}", terminal.size(version.get("bytes"))]
    proof: Any = version.get("proof")
    tokens = proof.get("prompt_tokens") if isinstance(proof, dict) else None
    return ["no weights"] if tokens is None else ["no weights", f"a prompt of {tokens} tokens"]


def promote(
    reference: Annotated[
        str, typer.Argument(help="The version, such as brand-voice@3.", autocompletion=complete_adapter)
    ],
    alias: Annotated[str, typer.Option(help="The alias to move.", callback=terminal.alias_option)] = DEFAULT_ALIAS,
    force: Annotated[bool, typer.Option("--force", help="Allow versions that are held back from live.")] = False,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version. Requests in progress keep the old one."""
    target = terminal.reference_argument(reference)
    if target.version is None:
        raise typer.BadParameter(f"Name a version, such as {target.name}@3.")
    with terminal.reporting(as_json), HatrackClient() as client:
        moved = client.adapters.promote(reference, alias, force=force)
    _print_moved(moved, target.name, alias, as_json)


def rollback(
    reference: Annotated[
        str, typer.Argument(metavar="NAME", help="The adapter, such as brand-voice.", autocompletion=complete_adapter)
    ],
    alias: Annotated[str, typer.Option(help="The alias to move back.", callback=terminal.alias_option)] = DEFAULT_ALIAS,
    as_json: AsJson = False,
) -> None:
    """Point an alias back to its previous version."""
    name = terminal.name_argument(reference)
    with terminal.reporting(as_json), HatrackClient() as client:
        moved = client.adapters.rollback(name, alias)
    _print_moved(moved, name, alias, as_json)


def _print_moved(moved: AdapterAlias, name: str, alias: str, as_json: bool) -> None:
    if as_json:
        terminal.print_json(moved)
    else:
        split = moved.get("split")  # a rollback may go back to one
        where = f"{name}@{moved.get('version', '?')}" if not split else f"a split, {terminal.pointers({alias: split})}"
        typer.echo(terminal.clean(f"{name}:{alias} now points to {where}"))


def rm(
    reference: Annotated[
        str,
        typer.Argument(help="A version (brand-voice@2) or an adapter (brand-voice).", autocompletion=complete_adapter),
    ],
    force: Annotated[bool, typer.Option("--force", help="Delete it even if an alias points to it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a version, or an adapter with all its versions. Asks for confirmation on a terminal."""
    target = terminal.reference_argument(reference)
    if target.alias is not None:
        message = f"Name a version ({target.name}@2) or the whole adapter ({target.name})."
        raise typer.BadParameter(f"{message} To delete the alias: hatrack alias rm {reference}")
    what = reference if target.version is not None else f"{reference} and all its versions"
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with terminal.reporting(as_json), HatrackClient() as client:
        client.adapters.delete(reference, force=force)
    if as_json:
        terminal.print_json({"deleted": reference})
    else:
        typer.echo(f"Deleted {what}.")


@alias.command(
    "rm", epilog=examples("hatrack alias rm brand-voice:canary", "hatrack alias rm brand-voice:canary --yes")
)
def alias_rm(
    reference: Annotated[str, typer.Argument(metavar="NAME:ALIAS", help="The alias, such as brand-voice:canary.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete an alias. Its versions stay, but requests for the alias fail. Asks for confirmation on a terminal."""
    target = terminal.reference_argument(reference)
    if target.alias is None:
        raise typer.BadParameter(f"Name an alias, such as {target.name}:canary.")
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete the alias {reference}? Requests for it will fail.", abort=True, err=True)
    with terminal.reporting(as_json), HatrackClient() as client:
        deleted = client.adapters.delete_alias(target.name, target.alias)
    if as_json:
        terminal.print_json(deleted)
    else:
        typer.echo(f"Deleted the alias {reference}.")
