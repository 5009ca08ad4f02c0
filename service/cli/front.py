"""``hatrack front``: answers inference for a gateway that stays the only writer."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from service.cli.run import console, fail, read_settings
from service.errors import SettingsError


def front(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: HATRACK_HOST]", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on. [default: HATRACK_PORT]", show_default=False),
    ] = None,
) -> None:
    """Answer inference in the foreground for a gateway, beside it or on another machine.

    HATRACK_FRONT_GATEWAY is the gateway's address, HATRACK_FRONT_KEY the secret that both share, HATRACK_AGENT_KEY that
    of the engines' agents. Keys, adapters and limits are the gateway's; what is no request to a model is passed on to
    it. It keeps nothing on the disk.
    """
    from service.front import create_front
    from service.server.serve import uvicorn_config
    from service.server.stopping import Stopping, StoppingServer
    from service.telemetry.logs import configure_logs

    settings = read_settings(host=host, port=port)
    configure_logs(settings.log_level)
    try:
        app = create_front(settings, stopping := Stopping())
    except SettingsError as error:
        fail(str(error))
    console.print(f"a front of {settings.front_gateway} on http://{settings.host}:{settings.port}")
    server = StoppingServer(uvicorn_config(app, settings), stopping, settings.stop_delay_s)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped cleanly
        server.run()
    if not server.started:
        fail("the front did not start; see the log above")
