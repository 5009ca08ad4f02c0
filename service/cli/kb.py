"""`kb create|list|add|search|rm`: knowledge bases, which are OpenAI's vector stores."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.wording import counted
from service.cli import terminal
from service.cli.completion import complete_store
from service.cli.grounding import store_users
from service.cli.terminal import AsJson, examples
from service.client import ClientError, HatrackClient

if TYPE_CHECKING:
    from service.client.types.files import Attributes, SearchResult, VectorStore, VectorStoreFile

SUFFIXES: Final = frozenset(
    {".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx", ".pptx", ".xlsx", ".csv", ".jsonl", ".json"}
)
"""What is taken out of a directory; a file that is named is sent whatever it is called."""
SHOWN_CHARS: Final = 400
PATH: Final = "path"
"""The attribute by which a file is known: where it lay, seen from the directory in which it was added."""

app = typer.Typer(help="Knowledge bases: documents that ground answers.", no_args_is_help=True)
Store = Annotated[str, typer.Argument(metavar="STORE", help="A store's name or id.", autocompletion=complete_store)]


@app.command(epilog=examples("hatrack kb create policies", 'hatrack kb create policies --description "Shop rules"'))
def create(
    name: Annotated[str, typer.Argument(help="The store's name.")],
    description: Annotated[str | None, typer.Option(help="What the store contains.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an empty store, under a name that no other store has."""
    with terminal.reporting(as_json), HatrackClient() as client:
        _require_unused(client, name)
        store = client.vector_stores.create(name, description=description)
    if as_json:
        terminal.print_json(store)
    else:
        typer.echo(
            f"{store['id']} is {terminal.clean(name)}; add documents with `hatrack kb add {terminal.clean(name)} FILE…`"
        )


def _require_unused(client: HatrackClient, name: str) -> None:
    """Names of stores need not be unique to the gateway, but two of one name could no longer be told apart here."""
    ids = [store["id"] for store in client.vector_stores.list() if store.get("name") == name]
    if ids:
        message = (
            f"There is already a store named {name} ({', '.join(ids)}). Add documents with "
            f"`hatrack kb add {name} FILE…`, or delete it with `hatrack kb rm {name}`."
        )
        raise ClientError(409, "vector_store_exists", message, "name")


@app.command("list", epilog=examples("hatrack kb list", "hatrack kb list policies"))
def list_(
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE", help="List this store's files. [default: list all stores]", autocompletion=complete_store
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the stores, or the files of one."""
    with terminal.reporting(as_json), HatrackClient() as client:
        store_id = None if store is None else client.vector_stores.find(store)["id"]
        stores = list(client.vector_stores.list()) if store_id is None else []
        files = [] if store_id is None else list(client.vector_stores.files.list(store_id))
    if as_json:
        terminal.print_json(stores if store is None else files)
    elif store is None:
        terminal.print_table(["ID", "NAME", "FILES", "SIZE", "STATUS", "CREATED"], [_store_row(row) for row in stores])
    else:
        terminal.print_table(["ID", "FILE", "PATH", "PASSAGES", "SIZE", "STATUS"], list(map(_file_row, files)))


@app.command(
    epilog=examples(
        "hatrack kb add policies docs/",
        "hatrack kb add policies returns.md --attribute region=eu --attribute year=2026",
        "hatrack kb add policies returns.md   (again: replaces the old text)",
    )
)
def add(
    store: Store,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", exists=True, help="Files or directories.")],
    attributes: Annotated[
        list[str] | None, typer.Option("--attribute", metavar="NAME=VALUE", help="Metadata for filters; repeatable.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep older files with the same path.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload documents and index them. A document replaces an older one that was added from the same path.

    Files are identified by their path relative to the current directory, which is stored in the attribute `path`.
    """
    documents = dict(_documents(paths))
    if not documents:
        raise typer.BadParameter(f"no documents found; supported are {', '.join(sorted(SUFFIXES))}.")
    metadata = terminal.attributes_option("--attribute", attributes)
    if PATH in metadata:
        raise typer.BadParameter(f"the attribute `{PATH}` is reserved for the file's path; choose another name.")
    with terminal.reporting(as_json), HatrackClient() as client:
        store_id = client.vector_stores.find(store)["id"]
        previous = (
            [] if keep else [file for file in client.vector_stores.files.list(store_id) if _path(file) in documents]
        )
        uploaded = _upload(client, documents, quiet=as_json)
        files = {file_id: metadata | {PATH: path} for path, file_id in uploaded.items()}
        results = _index(client, store_id, files, quiet=as_json)
        indexed = {_path(file) for file in results if file["status"] == "completed"}
        for file in previous:
            # what could not be read takes nobody's place
            if _path(file) in indexed and file["id"] not in files:
                _replace(client, store_id, file["id"])
    failed = [file for file in results if file["status"] != "completed"]
    if as_json:
        terminal.print_json(results)
    else:
        passages = sum(_count(file)[1] for file in results)
        typer.echo(
            f"{len(results) - len(failed)} of {counted(len(results), 'file')} indexed, {counted(passages, 'passage')}"
        )
    for file in failed:
        error = file.get("last_error")
        reason = (error and error.get("message")) or file["status"]
        typer.echo(f"hatrack: {terminal.clean(str(_path(file)))}: {terminal.clean(str(reason))}", err=True)
    if failed:
        raise typer.Exit(terminal.FAILED)


@app.command(
    epilog=examples(
        'hatrack kb search policies "How long may I send things back?"',
        """hatrack kb search policies returns --filter '{"type": "eq", "key": "region", "value": "eu"}'""",
    )
)
def search(
    store: Store,
    query: Annotated[str, typer.Argument(help="A question or keywords.")],
    max_results: Annotated[int, typer.Option("-k", min=1, max=50, help="Maximum number of passages.")] = 5,
    filters: Annotated[
        str | None, typer.Option("--filter", metavar="JSON", help="Filter on the files' attributes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the best-matching passages."""
    parsed_filter = _filter(filters)
    with terminal.reporting(as_json), HatrackClient() as client:
        passages = client.vector_stores.search(
            client.vector_stores.find(store)["id"], query, max_num_results=max_results, filters=parsed_filter
        )
    if as_json:
        terminal.print_json(passages)
        return
    for number, passage in enumerate(passages, start=1):
        text = " ".join(part["text"] for part in passage["content"])
        excerpt = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " …"
        typer.echo(f"[{number}] {passage['score']:.3f}  {terminal.clean(str(_path(passage) or passage['filename']))}")
        typer.echo("    " + terminal.clean(excerpt).replace("\n", "\n    "))
    if not passages:
        typer.echo("No passages match.")


@app.command(epilog=examples("hatrack kb rm policies returns.md", "hatrack kb rm policies --yes"))
def rm(
    store: Store,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A file's path, name or id. [default: all]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a store, or remove a file from it. Asks for confirmation: of a file, on a terminal."""
    with terminal.reporting(as_json), HatrackClient() as client:
        target = client.vector_stores.find(store)
        if file is None:
            if not yes:
                typer.echo(store_users(client, target["id"]), err=True)
                typer.confirm(
                    f"Delete {terminal.clean(store)} with its {counted(target['file_counts']['total'], 'file')}?",
                    abort=True,
                    err=True,
                )
            deleted: Sequence[object] = [client.vector_stores.delete(target["id"])]
        else:
            files = _find_files(file, store, list(client.vector_stores.files.list(target["id"])))
            if not yes and sys.stdin.isatty():
                typer.confirm(f"Remove {terminal.clean(file)} from {terminal.clean(store)}?", abort=True, err=True)
            deleted = [client.vector_stores.files.delete(target["id"], store_file["id"]) for store_file in files]
    if as_json:
        terminal.print_json(deleted)
    else:
        typer.echo(f"{terminal.clean(file or store)} deleted")


def add_documents(
    client: HatrackClient, store_id: str, paths: Sequence[Path], *, without: Collection[Path] = (), quiet: bool
) -> int:
    """Upload documents into a store and index them, but for those ``without``, whatever their path is; returns how many
    were indexed. Raises ClientError."""
    left_out = [file.read_bytes() for file in without]
    documents = {name: file for name, file in _documents(paths) if not _is_one_of(file, left_out)}
    if not documents:
        raise typer.BadParameter(f"no documents found; supported are {', '.join(sorted(SUFFIXES))}.")
    uploaded = _upload(client, documents, quiet=quiet)
    results = _index(client, store_id, {file_id: {PATH: path} for path, file_id in uploaded.items()}, quiet=quiet)
    return sum(file["status"] == "completed" for file in results)


def _documents(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Files by what they are known by; of a directory, what is below it."""
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
            yield from ((_identity(file), file) for file in files)
        else:
            yield _identity(path), path


def _is_one_of(file: Path, contents: Collection[bytes]) -> bool:
    size = file.stat().st_size
    return any(len(content) == size and file.read_bytes() == content for content in contents)


def _identity(path: Path) -> str:
    """Seen from the current directory, however it was written: `docs/a.md` for `./docs/a.md` or an absolute path."""
    return Path(os.path.relpath(path)).as_posix()


def _path(file: VectorStoreFile | SearchResult) -> str | None:
    """What a file of a store is known by; None where something else than this command has added it."""
    path = (file.get("attributes") or {}).get(PATH)
    return None if path is None else str(path)


def _find_files(reference: str, store: str, files: Sequence[VectorStoreFile]) -> list[VectorStoreFile]:
    """The files of a store with this id, path or file name.

    Raises:
        BadParameter: None matches, or files with different paths have this name.
    """
    for matching in (
        [file for file in files if file["id"] == reference],
        [file for file in files if _path(file) in (reference, _identity(Path(reference)))],
    ):
        if matching:
            return matching
    named = [file for file in files if file.get("filename") == reference]
    if not named:
        raise typer.BadParameter(f"{store} has no file {reference}.")
    paths = sorted({_path(file) or file["id"] for file in named})
    if len(paths) > 1:
        raise typer.BadParameter(f"{store} has several files named {reference}; name one of {', '.join(paths)}.")
    return named


def _upload(client: HatrackClient, documents: Mapping[str, Path], *, quiet: bool) -> dict[str, str]:
    """The new files' ids, by what they are known by."""
    ids = {}
    bar = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with _bars(*bar, quiet=quiet) as progress:
        task = progress.add_task("", total=sum(path.stat().st_size for path in documents.values()))
        for known, path in documents.items():
            made = client.files.create(path, "assistants", progress=lambda size: progress.advance(task, size))
            ids[known] = made["id"]
    return ids


def _index(
    client: HatrackClient, store_id: str, files: Mapping[str, Attributes], *, quiet: bool
) -> list[VectorStoreFile]:
    done: list[VectorStoreFile] = []
    bar = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TextColumn("passages"), TimeRemainingColumn())
    with _bars(*bar, TextColumn("{task.description}", markup=False), quiet=quiet) as progress:
        task = progress.add_task("", total=None)
        for batch in client.vector_stores.file_batches.create(store_id, files):
            batch_files: Sequence[VectorStoreFile] = []
            for batch_files in client.vector_stores.file_batches.poll(store_id, batch["id"]):
                counts = [_count(file) for file in [*done, *batch_files]]
                indexed = sum(indexed for indexed, _ in counts)
                total = sum(total or 1 for _, total in counts)  # a file that is not read yet counts as one passage
                progress.update(task, total=total, completed=indexed, description=_why_it_waits(batch_files))
            done += batch_files
    return done


def _count(file: VectorStoreFile) -> tuple[int, int]:
    """How many passages of a file are indexed, and how many it has."""
    passages = file.get("passages")
    return (passages.get("indexed") or 0, passages.get("total") or 0) if passages else (0, 0)


def _why_it_waits(files: Sequence[VectorStoreFile]) -> str:
    """Of a file that is not done, why, where that is known: its indexing goes on by itself."""
    errors = (file.get("last_error") for file in files if file["status"] == "in_progress")
    return next((terminal.clean(error["message"]) for error in errors if error), "")


@contextlib.contextmanager
def _bars(*columns: Any, quiet: bool) -> Iterator[Progress]:
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as progress:
        yield progress


def _replace(client: HatrackClient, store_id: str, file_id: str) -> None:
    client.vector_stores.files.delete(store_id, file_id)
    try:
        client.files.delete(file_id)
    except ClientError as error:
        if error.code != "file_not_found":  # somebody has taken it off the list of files before
            raise


def _filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--filter is not valid JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise typer.BadParameter("--filter must be a JSON object.")
    return parsed


def _store_row(store: VectorStore) -> list[str]:
    return [
        str(store["id"]),
        str(store.get("name") or "-"),
        str(store["file_counts"]["total"]),
        terminal.size(store.get("usage_bytes")),
        str(store["status"]),
        terminal.when(store.get("created_at")),
    ]


def _file_row(file: VectorStoreFile) -> list[str]:
    indexed, total = _count(file)
    return [
        str(file["id"]),
        str(file.get("filename") or "-"),
        str(_path(file) or "-"),
        str(total) if indexed == total else f"{indexed}/{total}",
        terminal.size(file.get("usage_bytes")),
        str(file["status"]),
    ]
