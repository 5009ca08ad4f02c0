"""Which processes an engine has, and whether processes still run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson
import psutil

from service.engine.process import members


def engine_processes(record: Path) -> dict[str, psutil.Process]:
    """The processes of the engine that a record names, by what they are: server, EngineCore, Worker."""
    processes = {}
    for process in members(str(orjson.loads(record.read_bytes())["token"])):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:  # a helper of its that has just ended
            continue
        if "vllm.entrypoints.openai.api_server" in line:
            processes["server"] = process
        for name in ("EngineCore", "Worker"):
            if line and line[0].endswith(f"::{name}"):
                processes[name] = process
    assert processes.keys() == {"server", "EngineCore", "Worker"}
    return processes


def is_running(process: psutil.Process) -> bool:
    """Whether it runs. One that has ended may stay a zombie, as in containers where nobody reaps it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in processes if is_running(process)]
