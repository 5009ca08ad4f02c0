"""``hatrack agent``: an engine with its queue, for gateways and fronts that find it by ``HATRACK_ENGINE_AGENT``."""

from __future__ import annotations

import socket
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from service.cli.engine import hold_store, make_way
from service.cli.run import console, fail, prepare_base, read_settings
from service.client.addresses import on_this_machine
from service.config.engines import MAX_ENGINES
from service.errors import SettingsError
from service.server.instance import InstanceLock
from service.server.private import keep_private

if TYPE_CHECKING:
    from service.agent.process import AgentSettings
    from service.config import Settings

ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104  (what is refused)


def agent(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8002,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on instead of host and port.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The engine's name in HATRACK_ENGINES; without that file, what its folder is called. "
            "[default: engine; with HATRACK_AGENT_ANNOUNCE the gateway gives one]",
            show_default=False,
        ),
    ] = None,
    address_file: Annotated[
        Path | None, typer.Option(help="Write the address there once it listens, such as that of `--port 0`.")
    ] = None,
) -> None:
    """Run an engine in the foreground with the queue before it, for one or more gateways and fronts.

    It takes the engine's HATRACK_* settings, and with HATRACK_ENGINE_URL uses the engine there. HATRACK_AGENT_KEY is
    the secret that it shares with those who use it by HATRACK_ENGINE_AGENT. The adapters come from the store under
    HATRACK_HOME, which must be the gateway's, or from HATRACK_STORE_URL. With HATRACK_AGENT_ANNOUNCE it tells the
    gateway there where it is, and becomes one of its engines that have `agent = "announced"`. The base model is
    prepared first if it is not there. What passes is signed and not encrypted: let it listen on a private network only.
    """
    from service.agent.process import AgentProcess
    from service.telemetry.logs import configure_logs

    given = read_settings()
    if given.agent_announce and not given.agent_url and uds is None and host in ANY_ADDRESS:
        fail(f"HATRACK_AGENT_URL must be set: the gateway cannot reach this agent at {host}, where it listens")
    try:
        settings, lock = hold_folder(given, name)
    except SettingsError as error:
        fail(str(error))
    keep_private(settings.home)
    configure_logs(settings.log_level)
    prepare_base(settings)
    path = None if uds is None else uds.expanduser().absolute()
    if path is not None:
        make_way(path)
    elif not on_this_machine(f"http://{host}"):
        console.print("[yellow]note:[/yellow] prompts and answers pass unencrypted: this must be a private network")
    try:
        process = AgentProcess(settings, name)
    except SettingsError as error:
        fail(str(error))
    hold_store(settings.store_dir)

    def started(address: str) -> None:
        if address_file is not None:
            _write_whole(address_file, address)
        console.print(f"the agent of `{settings.base_served_name}` listens; gateways: HATRACK_ENGINE_AGENT={address}")

    try:
        process.serve(host=host, port=port, uds=None if path is None else str(path), started=started)
    except OSError as error:
        fail(f"cannot listen on {path or f'{host}:{port}'}: {error.strerror or error}")
    finally:
        lock.release()


def _write_whole(file: Path, text: str) -> None:
    """Write a file so that whoever waits for it finds all of it."""
    written = file.with_name(f"{file.name}.new")
    written.write_text(text)
    written.replace(file)


def hold_folder(given: Settings, name: str | None) -> tuple[AgentSettings, InstanceLock]:
    """The settings of the agent, and the lock on its folder.

    One that its gateway names has the first folder of this machine that no agent uses: over restarts the same, with its
    cache of adapters, also where several machines share a home.

    Raises:
        SettingsError: The settings are not an agent's, or another one uses its folder.
    """
    from service.agent.process import DEFAULT_NAME, agent_settings

    if name is not None or not given.agent_announce or given.engines is not None:
        settings = agent_settings(given, name)
        return settings, InstanceLock(settings.engine_dir, f"hatrack agent --name {name or DEFAULT_NAME}")
    machine = blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
    for number in range(MAX_ENGINES):
        settings = agent_settings(given, f"{machine}-{number}")
        try:
            return settings, InstanceLock(settings.engine_dir, "hatrack agent")
        except SettingsError:
            continue
    raise SettingsError(f"{MAX_ENGINES} agents run on this machine with HATRACK_HOME={given.home}")
