"""Hatrack inside vLLM: adapters by digest, and containment of bad ones.

vLLM calls :func:`register` in each of its processes (API server, engine core, workers) before it builds anything.
It raises where vLLM is not the one that these patches were written for, and so that process ends: an engine without
containment must never start. vLLM swallows an *import* error of a plugin and goes on without it; that is why this
module imports next to nothing and why the gateway waits for the plugin's own route before it calls an engine ready.
"""

from __future__ import annotations


def register() -> None:
    """Install everything. May be called more than once in a process.

    Raises:
        PluginError: A parameter is missing, or vLLM's version or a patched attribute is not as expected.
    """
    from service.engine.plugin import (
        answers,
        containment,
        failed_reload,
        grammars,
        operators,
        residents,
        resolver,
        rows,
        waiting,
    )
    from service.engine.plugin.guard import check_version
    from service.engine.plugin.parameters import read_parameters

    parameters = read_parameters()
    check_version()
    containment.install()
    answers.install()
    failed_reload.install()
    rows.install()
    operators.install()
    grammars.install()
    waiting.install()
    resolver.install(parameters.store)
    residents.install(parameters.resident_bytes)
