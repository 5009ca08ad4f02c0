"""``hatrack up``, ``serve`` and ``down``: the commands that start and end processes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeAlias

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from service.access.keys import admin_key
from service.cli import samples
from service.client import ClientError, HatrackClient
from service.client.settings import DEFAULT_URL
from service.config import Settings, inherited_environment, load_settings
from service.config.engines import engine_dirs, engine_settings
from service.errors import SettingsError
from service.server.instance import InstanceLock, end_gateway, holder
from service.server.private import keep_private
from service.server.stopping import Stopping, StoppingServer
from service.training.config import local_url

if TYPE_CHECKING:
    from adapters.database.backend import Backend

READY_POLL_S = 0.5
FREE_THE_PORT = "end the program that listens there (`ss -ltnp`), or set HATRACK_PORT"
TRAINER_START_S = 120.0
console = Console(stderr=True, highlight=False)

KeepEngine: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--keep-engine/--no-keep-engine",
        help="Leave the engine running when this gateway stops; the next one adopts it. [default: HATRACK_KEEP_ENGINE]",
        show_default=False,
    ),
]

Trains: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--trainer/--no-trainer", help="Also start the trainer. [default: HATRACK_TRAINER]", show_default=False
    ),
]


def up(keep_engine: KeepEngine = None) -> None:
    """Prepare the base model, start engine, gateway and trainer, and train two sample adapters on first run.

    An engine that is already running is adopted if it matches the settings. Stays in the foreground; Ctrl-C stops
    everything, except the engine with --keep-engine.

    Example: hatrack up
    """
    settings = read_settings(keep_engine=keep_engine)
    if settings.trainer == "auto":
        settings = settings.model_copy(update={"trainer": "on"})
    refuse_unusable_data(settings)
    _refuse_taken_port(settings)
    keep_private(settings.home)
    for each in read_engines(settings):
        prepare_base(each)
    _run(settings, lambda: _first_run(settings))


def serve(keep_engine: KeepEngine = None, trainer: Trains = None) -> None:
    """Start the gateway and its engine, and with --trainer the trainer. The base model must have been prepared.

    An engine that is already running is adopted if it matches the settings, otherwise stopped. With HATRACK_ENGINE_URL
    the gateway uses the engine at that address, and never stops it.

    Example: HATRACK_PORT=9000 hatrack serve
    """
    trainer_setting = None if trainer is None else "on" if trainer else "off"
    settings = read_settings(keep_engine=keep_engine, trainer=trainer_setting)
    for each in read_engines(settings):
        if not (each.base_dir / "config.json").exists():
            fail(f"no base model at {each.base_dir}; `hatrack up` prepares it")
    refuse_unusable_data(settings)
    _refuse_taken_port(settings)
    keep_private(settings.home)
    _run(settings, None)


def down(
    keep_engine: Annotated[
        bool, typer.Option("--keep-engine", help="Stop only the gateway; the next one adopts the engine.")
    ] = False,
) -> None:
    """Stop the gateway of this HATRACK_HOME with its engine and trainer.

    Also stops those that --keep-engine or a crash left running.

    Example: hatrack down
    """
    from service.engine.process import ask_to_keep, end_leftovers
    from service.training.config import TrainerConfig
    from service.training.process import end_leftover

    settings = read_settings()
    if keep_engine and holder(settings.home) is not None:
        for directory in engine_dirs(settings):
            ask_to_keep(directory)
    pid = end_gateway(settings.home, settings.stop_delay_s + settings.drain_s)
    directories = [] if keep_engine else engine_dirs(settings)
    ended = [process for directory in directories for process in end_leftovers(directory)]
    trainer = end_leftover(TrainerConfig.from_settings(settings).lock)
    if trainer is not None:
        console.print(f"stopped a trainer that was still running (process {trainer})")
    if pid is None and not ended and trainer is None:
        console.print(f"nothing was running for {settings.home}" if not keep_engine else "no gateway was running")
        return
    if pid is not None:
        console.print(
            f"stopped the gateway (process {pid}){'; it was asked to keep its engine' if keep_engine else ''}"
        )
    if ended:
        console.print(f"stopped an engine that was still running ({len(ended)} processes)")


def refuse_unusable_data(settings: Settings) -> None:
    """End the command if the home cannot be used by this release, before anything in it is touched."""
    for problem in unusable_data(settings):
        fail(problem)


def _refuse_taken_port(settings: Settings) -> None:
    """End the command if the gateway could not listen, before a base is prepared and an engine loads it for minutes.

    A gateway of this home has the port by right: that it runs already is told later.
    """
    problem = unusable_address(settings) if holder(settings.home) is None else None
    if problem is not None:
        fail(f"{problem}; {FREE_THE_PORT}")


def unusable_address(settings: Settings) -> str | None:
    """Why a gateway cannot listen where it shall; None if it can."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
    except OSError as error:
        return f"{settings.host}:{settings.port} cannot be used: {error.strerror}"
    return None


def unusable_data(settings: Settings) -> list[str]:
    """Why this release cannot start in the home: a restore was cut off, or a newer release has written a database."""
    from service.storage.layout import databases
    from service.storage.restore import unfinished_restore

    if (unfinished := unfinished_restore(settings.home)) is not None:
        return [unfinished]
    checked = (_unusable_database(*database) for database in databases(settings).values())
    return [problem for problem in checked if problem is not None]


def _unusable_database(backend: Backend, migrations: Path) -> str | None:
    from adapters.database.backend import DatabaseFault
    from adapters.database.database import unusable

    try:
        revision = backend.revision()
    except DatabaseFault as error:
        return str(error)
    return unusable(backend, revision, migrations)


def _refuse_held_database(settings: Settings) -> None:
    """End the command if a gateway of another home has the same schema of a server."""
    from adapters.database.backend import DatabaseFault
    from service.storage.layout import DATABASE, databases

    backend, _ = databases(settings)[DATABASE]
    try:
        backend.refuse_held()
    except DatabaseFault as error:
        fail(str(error))


def prepare_base(settings: Settings) -> None:
    """Make the base model's directory, in a process of its own (it needs torch, the gateway does not)."""
    if (settings.base_dir / "config.json").exists():
        return
    console.print(f"Preparing the base model {settings.base_source} (once)…")
    arguments = ["--source", settings.base_source, "--dest", str(settings.base_dir.parent)]
    if "hub_url" in settings.model_fields_set:
        arguments += ["--hub", settings.hub_url]
    token = settings.hub_token
    _child("trainer.base_model", *arguments, **({} if token is None else {"HF_TOKEN": token.get_secret_value()}))


def _child(module: str, *arguments: str, **variables: str) -> None:
    """Run a module to its end, with further variables in its environment."""
    command, environment = [sys.executable, "-m", module, *arguments], inherited_environment() | variables
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False)
    if done.returncode != 0:
        fail(f"`python -m {module}` failed with exit code {done.returncode}; see its output above")


def read_settings(**flags: object) -> Settings:
    """The settings from the environment, a flag (None: not given) before a variable; a mistake ends the command with
    its name."""
    try:
        return load_settings(**{name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        fail(str(error))


def read_engines(settings: Settings) -> tuple[Settings, ...]:
    """Each engine's settings; a mistake in their file ends the command."""
    try:
        return engine_settings(settings)
    except SettingsError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command with exit code 1 and a reason."""
    console.print(f"[red]error:[/red] {message}")
    raise typer.Exit(1)


class _Server(StoppingServer):
    """Tells a person at a terminal that it is stopping, which takes as long as a checkpoint of a job."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal to stop; the second Ctrl-C waits for nothing."""
        was_stopping = self.should_exit
        super().handle_exit(sig, frame)
        if self.should_exit and not was_stopping and console.is_terminal:
            console.print(
                "\nStopping: requests in progress end, and jobs write a checkpoint to go on from… "
                "Ctrl-C again does not wait for them."
            )


def _run(settings: Settings, when_listening: Callable[[], None] | None) -> None:
    from service.app import create_app
    from service.engine.assemble import check_engine
    from service.objects.content import refuse_unusable_store
    from service.server.serve import uvicorn_config
    from service.telemetry.logs import configure_logs

    configure_logs(settings.log_level)
    try:
        lock = InstanceLock(settings.home)
        refuse_unusable_data(settings)  # again: a restore may have run, and been cut off, since it was first looked at
        _refuse_held_database(settings)
        refuse_unusable_store(settings)
        app = create_app(settings, stopping := Stopping())
        for each in read_engines(settings):
            asyncio.run(check_engine(each))
    except SettingsError as error:
        fail(str(error))
    server = _Server(uvicorn_config(app, settings), stopping, settings.stop_delay_s)
    if when_listening is not None:
        threading.Thread(target=when_listening, name="first-run", daemon=True).start()
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again once it has stopped cleanly
    finally:
        console.show_cursor()  # a bar of `when_listening` hides it, and ends with the process
        lock.release()
    if not server.started:
        fail("the gateway did not start; see the log above")


def _first_run(settings: Settings) -> None:
    """Wait for readiness, print what to try, and train the samples."""
    url = local_url(settings)
    given = settings.admin_key.get_secret_value() if settings.admin_key else None
    with HatrackClient(base_url=url, api_key=admin_key(settings.home, given)) as client:
        try:
            with console.status("Loading the engine…"):
                client.wait_ready(settings.engine_start_timeout_s)
            models = [*dict.fromkeys(each.base_served_name for each in read_engines(settings)), *_live(client)]
            key_file = None if given else settings.home / "admin.key"
            console.print(try_this(url, models, key_file=key_file), markup=False, soft_wrap=True)
            keeps = settings.keep_engine or settings.engine_is_elsewhere
            console.print(f"\nCtrl-C stops {'the gateway; the engine keeps running' if keeps else 'everything'}.")
            if settings.samples:
                _train_samples(client, settings, url)
        except (ClientError, OSError) as error:
            console.print(f"[red]✗[/red] {escape(str(error))}")


def _live(client: HatrackClient) -> list[str]:
    """The samples that answer already."""
    return [
        adapter["name"]
        for adapter in client.adapters.list()
        if adapter["name"] in samples.NAMES and "live" in adapter["aliases"]
    ]


def _train_samples(client: HatrackClient, settings: Settings, url: str) -> None:
    files = samples.sample_files()
    if files is None or not samples.wait_for_trainer(client, TRAINER_START_S):
        console.print("The sample voices are not trained, as no trainer answers.")
        return
    jobs = samples.start(client, files)
    if jobs:
        names = " and ".join(jobs)
        console.print(
            f"\n{names} are being trained and judged now, as jobs; the base answers meanwhile.\n"
            f"To watch them in a browser: {url}/console#/train\n",
            markup=False,
        )
    for name, job_id in jobs.items():
        try:
            if samples.follow(client, name, job_id, console):
                console.print(f"  .venv/bin/hatrack chat {name} 'Where is my parcel?'\n", markup=False)
        except ClientError as error:
            console.print(f"[red]✗[/red] {name}: {escape(str(error))}")


def try_this(url: str, models: list[str], *, key_file: Path | None) -> str:
    """Three commands to try first, as text to print. Where `hatrack` would look for the gateway elsewhere, they begin
    with the address."""
    question = "Where is my parcel?"
    first, last = models[min(1, len(models) - 1)], models[-1]
    body = orjson.dumps(
        {"model": first, "messages": [{"role": "user", "content": question}], "max_tokens": 60}
    ).decode()
    exports = f"  export HATRACK_KEY=$(cat {os.path.relpath(key_file)})\n" if key_file else ""
    if url != DEFAULT_URL:
        exports += f"  export HATRACK_URL={url}\n"
    return (
        f"\nHatrack is ready at {url}: {', '.join(models)}. Try:\n\n{exports}"
        f'  curl {url}/v1/chat/completions -H "Authorization: Bearer $HATRACK_KEY" \\\n'
        f"       -H 'Content-Type: application/json' -d '{body}'\n\n"
        f"  .venv/bin/python -c \"import os, openai; c = openai.OpenAI(base_url='{url}/v1', "
        f"api_key=os.environ['HATRACK_KEY']); print(c.chat.completions.create(model='{last}', max_tokens=60, "
        f"messages=[dict(role='user', content='{question}')]).choices[0].message.content)\"\n\n"
        f"  .venv/bin/hatrack chat {first} '{question}'"
    )
