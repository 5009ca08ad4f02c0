"""``hatrack engine``: an engine alone, for a gateway that finds it by ``HATRACK_ENGINE_URL``."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from stat import S_ISSOCK
from typing import Annotated

import typer

from service.cli.run import console, fail, prepare_base, read_settings
from service.client.addresses import on_this_machine
from service.config import Settings, inherited_environment
from service.config.engines import named_engine
from service.errors import SettingsError
from service.server.private import UMASK


def engine(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8001,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on instead of host and port.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Which engine of the file HATRACK_ENGINES; required where that is set.")
    ] = None,
) -> None:
    """Run an engine in the foreground, without a gateway.

    It takes the same HATRACK_* settings as the gateway that will use it by HATRACK_ENGINE_URL, and must see the same
    adapter store (HATRACK_HOME); the gateway checks both. Of several engines (HATRACK_ENGINES), --name says which one
    it is: its entry has a `url`, or the gateway starts an engine of its own for it. With HATRACK_ENGINE_KEY it asks
    for that key. The base model is prepared first if it is not there. Whoever reaches the engine reaches every adapter:
    never let it listen where callers are.
    """
    settings = _engine_settings(read_settings(), name)
    os.umask(UMASK)
    prepare_base(settings)
    if uds is None:
        if settings.engine_key is None and not on_this_machine(f"http://{host}"):
            console.print(
                "[yellow]warning:[/yellow] without HATRACK_ENGINE_KEY anybody on the network can use the engine"
            )
        listen, address = ["--host", host, "--port", str(port)], f"http://{host}:{port}"
    else:
        path = uds.expanduser().absolute()
        make_way(path)
        listen, address = ["--uds", str(path)], f"unix:{path}"
    argv, environment = command(settings, listen)
    hold_store(settings.store_dir)
    told = f"HATRACK_ENGINE_URL={address}" if name is None else f'url = "{address}" of the entry `{name}`'
    console.print(f"starting an engine for `{settings.base_served_name}`; gateways: {told}")
    os.execve(argv[0], argv, environment)  # noqa: S606 (the engine takes this process's place, signals and all)


def _engine_settings(settings: Settings, name: str | None) -> Settings:
    """The settings of the engine to start: of an entry, where HATRACK_ENGINES names a file."""
    if name is not None and settings.engines is None:
        fail(f"--name {name[:80]!r} names an entry of the file HATRACK_ENGINES, which is not set; leave --name out")
    try:
        own = named_engine(settings, name)
    except SettingsError as error:
        fail(str(error))
    if name is not None and not own.engine_url:
        console.print(
            f"[yellow]warning:[/yellow] the entry `{name}` has no `url`: a gateway with this file starts an engine of "
            "its own"
        )
    return own


def command(settings: Settings, listen: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of an engine that listens where vLLM's flags in ``listen`` say.

    Ends the command where the settings are wrong or the base cannot be read.
    """
    from service.engine.assemble import describe_base
    from service.engine.config import EngineConfig, require_vllm

    try:
        require_vllm()
        base = describe_base(settings)
        config = EngineConfig.from_settings(settings, base)
        config.store.mkdir(parents=True, exist_ok=True)
        config.write_template()
    except SettingsError as error:
        fail(str(error))
    except OSError as error:
        fail(f"the adapter store {settings.store_dir} or {settings.engine_dir} cannot be written: {error.strerror}")
    environment = config.environment(secrets.token_hex(16), inherited_environment(), base=base.fingerprint)
    if settings.engine_key is not None:
        environment["VLLM_API_KEY"] = settings.engine_key.get_secret_value()
    return config.argv(listen), environment


def hold_store(store: Path) -> None:
    """Keep `hatrack gc` from removing adapters as long as the engine lives that takes this process's place."""
    from adapters.store import hold_for_engine

    try:
        hold_for_engine(store)
    except OSError as error:  # a file system without locks
        console.print(
            f"[yellow]warning:[/yellow] the adapter store {store} cannot be locked ({error.strerror}): stop this "
            "engine before `hatrack gc` removes adapters"
        )


def make_way(path: Path) -> None:
    """Make the socket's directory, and remove a socket that nobody listens on any more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    if not S_ISSOCK(path.stat().st_mode):
        fail(f"{path} exists but is not a socket; remove it, or choose another --uds")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    fail(f"another process already listens on {path}; stop it, or choose another --uds")
