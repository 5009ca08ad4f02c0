"""Adopts an engine that a previous gateway left running, if it matches the current settings."""

from __future__ import annotations

from typing import Final

import psutil

from adapters.base import Fingerprint
from service.config import inherited_environment
from service.engine.client import EngineClient
from service.engine.compatibility import IncompatibleEngine, check_compatibility
from service.engine.config import EngineConfig
from service.engine.identity import boot_id, plugin_digest, read_store_id
from service.engine.liveness import LivenessMonitor
from service.engine.process import EngineProcess, members
from service.engine.record import EngineRecord, Signature, read_record
from service.errors import HatrackError

REPORT_TIMEOUT_S: Final = 5.0
CANARY_TIMEOUT_S: Final = 10.0


class NotAdopted(Exception):
    """The recorded engine cannot be adopted; the message says why."""


async def adopt(
    config: EngineConfig, base: Fingerprint | None, probe: EngineClient, liveness: LivenessMonitor
) -> EngineProcess | None:
    """The recorded engine, or None if there is no record; takes a second or two.

    The record alone is not trusted: the engine must report the same signature, boot id, plugin code, base and store,
    and answer a canary request.

    Args:
        config: The configuration with which an engine would be started now.
        base: The identity of the base model; without it no engine is adopted.
        probe: A client of the engine's socket.
        liveness: Sends the canary request.

    Raises:
        NotAdopted: The recorded engine does not match; the caller must end it.
    """
    record = read_record(config.record)
    if record is None:
        return None
    if base is None:
        raise NotAdopted("the identity of the base model is unknown")
    ours = Signature.of(config, base, inherited_environment())
    _compare(record, ours)
    engine = _open(record)
    try:
        await _ask(record, ours, config, base, probe)
        if not await liveness.canary(CANARY_TIMEOUT_S, engine=engine):
            raise NotAdopted("its first response is missing or not finite")
    except BaseException:
        engine.release()
        raise
    return engine


def _compare(record: EngineRecord, ours: Signature) -> None:
    if record.signature is None:
        raise NotAdopted("its record has no signature")
    differences = ours.differences(record.signature)
    if differences:
        raise NotAdopted(f"it was started with different settings: {', '.join(differences)}")


def _open(record: EngineRecord) -> EngineProcess:
    if record.pid is None:
        raise NotAdopted("its start was interrupted")
    try:
        engine = EngineProcess(record.token, record.pid)
    except (OSError, psutil.Error):
        raise NotAdopted("its API server has exited") from None
    # the pid can no longer be reused now: check that its process carries the token
    if record.pid not in {process.pid for process in members(record.token)}:
        engine.release()
        raise NotAdopted("its API server has exited")
    return engine


async def _ask(
    record: EngineRecord, ours: Signature, config: EngineConfig, base: Fingerprint, probe: EngineClient
) -> None:
    try:
        report = await probe.report(timeout_s=REPORT_TIMEOUT_S)
    except HatrackError as error:
        raise NotAdopted(f"it does not respond: {error.message}") from error
    if (report.get("boot"), report.get("signature")) != (boot_id(record.token), ours.digest):
        raise NotAdopted("a different engine is listening on its socket")
    if report.get("plugin") != plugin_digest():
        raise NotAdopted("it runs another version of the plugin")
    try:
        check_compatibility(report, config, base, read_store_id(config.store) or "")
    except IncompatibleEngine as error:
        raise NotAdopted(str(error)) from error
