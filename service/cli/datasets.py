"""`data push list show diff pull delete`: datasets; and what a command means by a file or a dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adapters.errors import AdapterError
from adapters.names import Reference, parse_dataset
from adapters.wording import counted
from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient
from service.client.upload import file_sha256

if TYPE_CHECKING:
    from service.client.types.datasets import Dataset, DatasetDiff, DatasetVersion

EXAMPLES: Final = typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="Examples, JSONL.")
FILE_SUFFIXES: Final = (".jsonl", ".json", ".csv", ".txt", ".parquet")
"""A text that ends so, and names no file, is a file that is missing rather than a dataset."""
KEPT: Final = frozenset({"file_not_found", "file_in_use", "file_not_allowed"})
"""Refusals to delete a version's file that are no failure: it is gone already, or others need it."""


@dataclass(frozen=True, slots=True)
class DataSource:
    """Examples to train or judge on: a file of this machine, or a dataset's version; and the SHA-256 of the bytes."""

    sha256: str
    path: Path | None = None
    dataset: str | None = None

    @property
    def shown(self) -> str:
        """For messages: the file's name, or `name@version`."""
        return self.path.name if self.path is not None else str(self.dataset)

    def sent(self, client: HatrackClient) -> str:
        """What a request names: the id of the file, which is uploaded, or the dataset's version."""
        return client.files.create(self.path)["id"] if self.path is not None else str(self.dataset)


def data_argument(text: str | None) -> str | None:
    """Check a FILE|NAME@VERSION argument; what is neither a file nor the name of a dataset is a usage error."""
    if text is None or Path(text).is_file():
        return text
    if "/" in text or text.lower().endswith(FILE_SUFFIXES) or Path(text).exists():
        raise typer.BadParameter(f"no such file: {text!r}.")
    try:
        parse_dataset(text)
    except AdapterError as error:
        raise typer.BadParameter(f"{text!r} is neither a file nor a dataset. {error.message}") from error
    return text


def find_source(client: HatrackClient, text: str) -> DataSource:
    """The file or the dataset's version that a checked argument means now. Raises ClientError."""
    path = Path(text)
    if path.is_file():
        return DataSource(file_sha256(path), path=path)
    version = find_version(client, parse_dataset(text))
    return DataSource(version["sha256"], dataset=f"{version['dataset']}@{version['version']}")


def find_version(client: HatrackClient, reference: Reference) -> DatasetVersion:
    """The version that a reference means: the newest one if it names none. Raises ClientError."""
    if reference.version is None:
        return client.datasets.retrieve(reference.name)["versions"][-1]
    return client.datasets.versions.retrieve(reference.name, reference.version)


def reference_argument(text: str) -> Reference:
    """Parse `name` or `name@3`; a mistake is a usage error (exit code 2)."""
    try:
        return parse_dataset(text)
    except AdapterError as error:
        raise typer.BadParameter(error.message) from error


def version_argument(text: str) -> tuple[str, int]:
    """Parse `name@3`; a mistake is a usage error."""
    reference = reference_argument(text)
    if reference.version is None:
        raise typer.BadParameter(f"name a version, such as {reference.name}@1; got {text}.")
    return reference.name, reference.version


def push(
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
    file: Annotated[Path, EXAMPLES],
    note: Annotated[str | None, typer.Option(help="What is new, for people.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a file as the next version of a dataset. Bytes that the latest version has make no new version."""
    reference = reference_argument(name)
    if reference.version is not None:
        raise typer.BadParameter(f"name the dataset alone, {reference.name}: versions are numbered by the gateway.")
    with terminal.reporting(as_json), HatrackClient() as client:
        version = client.datasets.push(name, file, note=note)
    if as_json:
        terminal.print_json(version)
    elif version["unchanged"]:
        typer.echo(f"{name}@{version['version']} already has these bytes; nothing was changed")
    else:
        typer.echo(f"{name}@{version['version']}: {counted(version['rows'], 'row')}, {terminal.size(version['bytes'])}")


def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets, oldest first."""
    with terminal.reporting(as_json), HatrackClient() as client:
        listed = list(client.datasets.list())
    if as_json:
        terminal.print_json(listed)
    elif listed:
        rows = []
        for dataset in listed:
            latest = dataset["versions"][-1]
            size, created = terminal.size(latest["bytes"]), terminal.when(latest["created_at"])
            name, versions = dataset["name"], str(len(dataset["versions"]))
            rows.append((name, versions, f"{name}@{latest['version']}", str(latest["rows"]), size, created))
        terminal.print_table(("DATASET", "VERSIONS", "LATEST", "ROWS", "SIZE", "PUSHED"), rows)
    else:
        typer.echo("No datasets. Run `hatrack data push NAME FILE` to make one.")


def show(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A dataset or a version of it.")],
    as_json: AsJson = False,
) -> None:
    """Show a dataset's versions, or one version."""
    target = reference_argument(reference)
    with terminal.reporting(as_json), HatrackClient() as client:
        shown: Dataset | DatasetVersion = (
            client.datasets.retrieve(target.name)
            if target.version is None
            else client.datasets.versions.retrieve(target.name, target.version)
        )
    if as_json:
        terminal.print_json(shown)
    elif shown["object"] == "dataset":
        columns = ("VERSION", "ROWS", "SIZE", "PUSHED", "SHA-256", "NOTE")
        terminal.print_table(columns, [_version_row(version) for version in shown["versions"]])
    else:
        facts = [(field, "-" if value is None else str(value)) for field, value in shown.items() if field != "object"]
        terminal.print_table(("FIELD", "VALUE"), facts)


def _version_row(version: DatasetVersion) -> tuple[str, ...]:
    size, created = terminal.size(version["bytes"]), terminal.when(version["created_at"])
    name = f"{version['dataset']}@{version['version']}"
    return name, str(version["rows"]), size, created, version["sha256"][:12], version["note"] or "-"


def diff(
    old: Annotated[str, typer.Argument(metavar="NAME@OLD", help="The version to compare with.")],
    new: Annotated[str, typer.Argument(metavar="NAME@NEW", help="The version to look at.")],
    limit: Annotated[int, typer.Option("-n", min=0, max=100, help="Rows of each kind to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the rows that a version has added, removed or changed since another one."""
    (old_name, against), (name, version) = version_argument(old), version_argument(new)
    if old_name != name:
        raise typer.BadParameter(f"only versions of one dataset can be compared; got {old_name} and {name}.")
    with terminal.reporting(as_json), HatrackClient() as client:
        differences = client.datasets.versions.diff(name, version, against, limit=limit)
    if as_json:
        terminal.print_json(differences)
    else:
        _print_diff(differences, old, new)


def _print_diff(differences: DatasetDiff, old: str, new: str) -> None:
    counts = differences["counts"]
    lines = [
        f"{old} to {new}: {counts['added']} added, {counts['removed']} removed, {counts['changed']} changed, "
        f"{counts['unchanged']} unchanged"
    ]
    lines += [
        f"+ line {row['line']}: {_quoted(row['question'])}: {_quoted(row['answer'])}" for row in differences["added"]
    ]
    lines += _more(counts["added"], len(differences["added"]), "added")
    lines += [
        f"- line {row['line']} of {old}: {_quoted(row['question'])}: {_quoted(row['answer'])}"
        for row in differences["removed"]
    ]
    lines += _more(counts["removed"], len(differences["removed"]), "removed")
    for change in differences["changed"]:
        lines.append(f"~ line {change['line']}: {_quoted(change['question'])}")
        lines.append(f"    was {_quoted(change['against_answer'])} (line {change['against_line']} of {old})")
        lines.append(f"    is  {_quoted(change['answer'])}")
    lines += _more(counts["changed"], len(differences["changed"]), "changed")
    typer.echo(terminal.clean("\n".join(lines)))


def _quoted(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def _more(count: int, shown: int, kind: str) -> list[str]:
    return [f"  and {count - shown} more {kind}"] if count > shown else []


def pull(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The version; by default the newest.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download a version's file, byte for byte."""
    target = reference_argument(reference)
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} exists; give --force to overwrite it.")
    with terminal.reporting(as_json), HatrackClient() as client:
        version = find_version(client, target)
        client.datasets.versions.download(target.name, version["version"], file)
    if as_json:
        terminal.print_json(version)
    else:
        rows, size = version["rows"], terminal.size(version["bytes"])
        typer.echo(f"{target.name}@{version['version']}: {counted(rows, 'row')}, {size}, written to {file}")


def delete(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="A version, or a dataset with all of them.")
    ],
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Keep the uploaded files of the versions.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a version or a dataset, and its files unless another dataset has them. Asks first on a terminal.

    What adapters were trained on stays stored as long as they do.
    """
    target = reference_argument(reference)
    what = reference if target.version is not None else f"{reference} and all its versions"
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with terminal.reporting(as_json), HatrackClient() as client:
        versions = (
            client.datasets.retrieve(target.name)["versions"]
            if target.version is None
            else [find_version(client, target)]
        )
        client.datasets.delete(reference)
        for file_id in () if keep_files else sorted({version["file"] for version in versions}):
            _delete_file(client, file_id)
    if as_json:
        terminal.print_json({"deleted": reference})
    else:
        typer.echo(f"Deleted {what}.")


def _delete_file(client: HatrackClient, file_id: str) -> None:
    try:
        client.files.delete(file_id)
    except ClientError as error:
        if error.code not in KEPT:
            raise
