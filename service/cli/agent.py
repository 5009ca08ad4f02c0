"""``hatrack agent``: an engine with its queue, for gateways and fronts that find it by ``HATRACK_ENGINE_AGENT``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from service.cli.engine import hold_store, make_way
from service.cli.run import console, fail, prepare_base, read_settings
from service.client.addresses import on_this_machine
from service.errors import SettingsError
from service.server.instance import InstanceLock
from service.server.private import keep_private


def agent(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8002,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on instead of host and port.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The engine's name in HATRACK_ENGINES; without that file, what its folder is called. "
            "[default: engine]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run an engine in the foreground with the queue before it, for one or more gateways and fronts.

    It takes the engine's HATRACK_* settings, and with HATRACK_ENGINE_URL uses the engine there. HATRACK_AGENT_KEY is
    the secret that it shares with those who use it by HATRACK_ENGINE_AGENT. The adapters come from the store under
    HATRACK_HOME, which must be the gateway's, or from HATRACK_STORE_URL. The base model is prepared first if it is not
    there. What passes is signed and not encrypted: let it listen on a private network only.
    """
    from service.agent.process import DEFAULT_NAME, AgentProcess, agent_settings
    from service.telemetry.logs import configure_logs

    try:
        settings = agent_settings(read_settings(), name)
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
    shown = name or DEFAULT_NAME
    try:
        lock = InstanceLock(settings.engine_dir, f"hatrack agent --name {shown}")
        process = AgentProcess(settings)
    except SettingsError as error:
        fail(str(error))
    hold_store(settings.store_dir)

    def started(address: str) -> None:
        console.print(f"the agent of `{settings.base_served_name}` listens; gateways: HATRACK_ENGINE_AGENT={address}")

    try:
        asyncio.run(process.run(host=host, port=port, uds=None if path is None else str(path), started=started))
    except OSError as error:
        fail(f"cannot listen on {path or f'{host}:{port}'}: {error.strerror or error}")
    finally:
        lock.release()
