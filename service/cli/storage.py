"""`backup`, `restore` and `gc`: what an operator does with the home itself. No gateway need run."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import ClientError
from service.config import Settings, load_settings
from service.errors import SettingsError
from service.storage import GRACE_S
from service.storage.errors import BackupError

if TYPE_CHECKING:  # the modules that work on a home import sqlalchemy and numpy, which no other command needs
    from service.storage.archive import Manifest
    from service.storage.garbage import Garbage

SECRETS_NOTE = (
    "It contains the secrets of this home (the hashes of all keys and the secret that signs them, admin.key, keys of "
    "runs that have not ended). Only you can read it (mode 0600): keep every copy as safe as admin.key."
)


def backup(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The file to write, or a directory for it. [default: hatrack-TIME.tar here]",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="FILE", help="Only check this backup; write nothing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Back up this HATRACK_HOME into one file, also while the gateway runs: databases, keys, adapters, files, runs.

    The file is verified after it is written, and has its name only then. The base model and the settings are not in
    it. See deploy/BACKUP.md.
    """
    from service.storage import layout
    from service.storage.backup import make_backup

    if verify is not None:
        if target is not None:
            raise typer.BadParameter("give either a file to write or --verify, not both.")
        _verify(verify, as_json)
        return
    settings = _settings(as_json)
    path = _target(target)
    bar = terminal.bytes_bar("copying the databases", "copying", quiet=as_json)
    try:
        with bar as progress:
            done = make_backup(settings, path, progress)
    except (BackupError, OSError) as error:
        _fail(error, as_json)
    notes = [*layout.outside(settings).values(), *done.manifest.faults]
    if as_json:
        terminal.print_json({"path": str(path), "bytes": done.bytes, **_facts(done.manifest), "notes": notes})
        return
    typer.echo(f"{path}: {_described(done.manifest)}, verified")
    typer.echo(SECRETS_NOTE)
    _print_notes(notes)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup that `hatrack backup` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty HATRACK_HOME, on this machine or another one.

    Every file is checked before any is put into place. A base model that is already prepared there may stay.
    """
    from service.storage.restore import restore as restore_backup

    settings = _settings(as_json)
    bar = terminal.bytes_bar("reading the backup", "restoring", quiet=as_json)
    try:
        with bar as progress:
            done = restore_backup(settings, file, progress)
    except (BackupError, OSError) as error:
        _fail(error, as_json)
    if as_json:
        terminal.print_json({"home": str(done.home), **_facts(done.manifest), "notes": list(done.notes)})
        return
    typer.echo(f"{done.home}: {_described(done.manifest)}, restored")
    _print_notes(list(done.notes))
    typer.echo("Next: `hatrack doctor`, then start the gateway as before (`hatrack up`, `hatrack serve --trainer`).")


def move_database(as_json: AsJson = False) -> None:
    """Copy hatrack.db into the empty PostgreSQL database that HATRACK_DATABASE_URL names; the gateway must be stopped.

    All rows go over in one transaction, and are counted; hatrack.db is left as it was. See deploy/POSTGRESQL.md.
    """
    from service.storage.move import move_databases

    settings = _settings(as_json)
    try:
        moved = move_databases(settings)
    except (BackupError, OSError) as error:
        _fail(error, as_json)
    if as_json:
        shown = [{"from": str(each.source), "to": each.place, "rows": each.rows} for each in moved]
        terminal.print_json({"moved": shown})
        return
    for each in moved:
        rows = f"{sum(each.rows.values())} rows in {len(each.rows)} tables"
        typer.echo(f"{each.source} → {each.place}: {rows}, all counted there")
    typer.echo("The file is as it was, and is no longer read; keep it until you have a dump of the new database.")
    typer.echo("From now on every command of this home needs the same HATRACK_DATABASE_URL.")
    typer.echo("Next: `hatrack doctor`, then start the gateway with it.")


def move_store(
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Take the bucket's prefix from the installation that it belongs to."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy this home's adapters and files into the object store that HATRACK_STORE_URL names; the gateway must be
    stopped.

    Each is verified before it is copied, and counted there at the end; killed, it goes on where it was. The local
    folders stay, as the cache. A prefix belongs to one installation; a home that was restored or copied is another one,
    which takes it with --take-over once the former is gone. See deploy/OBJECT_STORE.md.
    """
    from service.storage.move_store import move_content

    settings = _settings(as_json)
    bar = terminal.bytes_bar("reading the database", "copying", quiet=as_json)
    try:
        with bar as progress:
            moved = move_content(settings, progress, takes_over=take_over)
    except (BackupError, OSError) as error:
        _fail(error, as_json)
    if as_json:
        terminal.print_json(asdict(moved))
        return
    if take_over and not moved.bytes:
        lost = f"{moved.missing} objects of it are missing" if moved.missing else "all of it is there"
        typer.echo(
            f"{moved.url} is this installation's now. The database names {moved.adapters} adapters and {moved.files} "
            f"files in it; {lost}."
        )
        return
    typer.echo(
        f"{moved.url}: {moved.adapters} adapters and {moved.files} files, {terminal.size(moved.bytes)}, all found "
        f"there; {moved.copied} were copied now"
    )
    typer.echo("Next: `hatrack doctor`, then start the gateway with the same HATRACK_STORE_URL.")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    hours: Annotated[
        float, typer.Option("--min-age", min=1, metavar="HOURS", help="Leave what is younger: uploads in progress.")
    ] = GRACE_S / 3600,
    as_json: AsJson = False,
) -> None:
    """Remove from this HATRACK_HOME what nothing names any more, also while the gateway runs.

    Lists it with sizes, and asks on a terminal; elsewhere it removes nothing without --yes. Adapters' files go at the
    next start of the engine if a gateway or an engine runs. Fails if something cannot be removed.
    """
    from service.storage.garbage import find_garbage, remove_garbage

    settings, grace_s = _settings(as_json), hours * 3600
    gone: list[Garbage] = []
    problems: dict[Garbage, str] = {}
    freed = 0
    try:
        garbage = find_garbage(settings, grace_s=grace_s)
        now = [each for each in garbage if each.later is None]
        if not as_json:
            _print_garbage(settings.home, garbage)
        if now and not dry_run:
            total = terminal.size(sum(each.bytes for each in now))
            if yes or (sys.stdin.isatty() and typer.confirm(f"Remove {len(now)} of them, {total}?", err=True)):
                freed = remove_garbage(
                    settings, grace_s=grace_s, removed=gone.append, failed=problems.__setitem__, shown=now
                )
    except (BackupError, OSError) as error:
        _fail(error, as_json)
    if as_json:
        gone_keys, reasons = {each.key for each in gone}, {each.key: problem for each, problem in problems.items()}
        shown = [
            {
                "kind": each.kind,
                "paths": [path.relative_to(settings.home).as_posix() for path in each.paths],
                "objects": list(each.objects),
                "bytes": each.bytes,
                "later": each.later,
                "removed": each.key in gone_keys,
                "error": reasons.get(each.key),
            }
            for each in garbage
        ]
        terminal.print_json({"home": str(settings.home), "freed_bytes": freed, "garbage": shown})
    elif gone or problems:
        typer.echo(f"Removed {len(gone)}, {terminal.size(freed)}.")
    elif now:
        typer.echo("Nothing was removed. To remove it: hatrack gc --yes")
    _fail_on(problems, as_json)


def _fail_on(problems: dict[Garbage, str], as_json: bool) -> None:
    """End the command with an error if something could not be removed."""
    if not problems:
        return
    if not as_json:
        for problem in problems.values():
            typer.echo(terminal.clean(f"Not removed: {problem}"), err=True)
    raise typer.Exit(terminal.FAILED)


def _print_garbage(home: Path, garbage: list[Garbage]) -> None:
    if not garbage:
        typer.echo(f"{home}: nothing that nothing names")
        return
    rows = [(each.kind, terminal.size(each.bytes), _place(home, each), each.later or "now") for each in garbage]
    terminal.print_table(("KIND", "SIZE", "PATH", "CAN GO"), rows)


def _place(home: Path, garbage: Garbage) -> str:
    if garbage.objects:
        return f"{garbage.objects[0]} (object store)"
    return garbage.paths[0].relative_to(home).as_posix()


def _verify(path: Path, as_json: bool) -> None:
    from service.storage.archive import check_members, read_manifest

    bar = terminal.bytes_bar("reading the backup", "verifying", quiet=as_json)
    try:
        with bar as progress:
            manifest = read_manifest(path)
            check_members(path, manifest, progress)
    except (BackupError, OSError) as error:
        _fail(error, as_json)
    if as_json:
        terminal.print_json({"path": str(path), "bytes": path.stat().st_size, **_facts(manifest)})
        return
    typer.echo(f"{path}: {_described(manifest)}, whole")
    _print_notes(list(manifest.faults))


def _target(given: Path | None) -> Path:
    from service.storage import layout

    name = time.strftime(layout.BACKUP_NAME, time.gmtime())
    if given is None:
        return Path.cwd() / name
    return given.absolute() / name if given.is_dir() else given.absolute()


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "hatrack": manifest.hatrack,
        "created_at": manifest.created_at,
        "format": manifest.format,
        "files": len(manifest.members),
        "content_bytes": manifest.bytes,
        "schemas": manifest.schemas,
        "base": manifest.base,
        "outside": list(manifest.outside),
        "reindexed": manifest.reindexed,
        "faults": list(manifest.faults),
    }


def _described(manifest: Manifest) -> str:
    from service.storage import layout

    made = datetime.fromtimestamp(manifest.created_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    names = [member.path for member in manifest.members]
    adapters = {name.split("/")[1] for name in names if name.startswith(f"{layout.ADAPTERS}/")}
    folders = tuple(f"{parent}/" for parent in layout.RUNS)
    runs = {"/".join(name.split("/")[:3]) for name in names if name.startswith(folders)}
    files = sum(name.startswith(f"{layout.FILES}/") for name in names)
    stores = sum(name.startswith(f"{layout.STORES}/") for name in names)
    return terminal.clean(
        f"Hatrack {manifest.hatrack}, {made}, {terminal.size(manifest.bytes)}: {len(adapters)} adapters' weights, "
        f"{files} files, {stores} vector stores, {len(runs)} runs"
    )


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        typer.echo(terminal.clean(f"Note: {note}"))


def _settings(as_json: bool) -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        terminal.print_error(ClientError(0, "invalid_settings", str(error)), as_json)
        raise typer.Exit(terminal.FAILED) from error


def _fail(error: BackupError | OSError, as_json: bool) -> NoReturn:
    if isinstance(error, OSError):
        error = BackupError(f"{error.filename or 'the disk'}: {error.strerror}")
    terminal.print_error(ClientError(0, error.code, str(error)), as_json)
    raise typer.Exit(terminal.FAILED) from error
