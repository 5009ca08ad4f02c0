"""Going on with an engine that a former gateway left running, where it is just what this one would start."""

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
    """There is an engine on record, and it cannot be gone on with; the message says why."""


async def adopt(
    config: EngineConfig, base: Fingerprint | None, probe: EngineClient, liveness: LivenessMonitor
) -> EngineProcess | None:
    """The engine on record, if there is one and it may go on; takes a second or two.

    The record alone is not believed: the engine itself repeats the signature that it was started with, names its start,
    its code, its base and its store, and answers a canary.

    Args:
        config: What an engine would be started with now.
        base: The identity of the base model; without it no engine is adopted.
        probe: A client of the engine's socket.
        vitals: Asks the canary.

    Raises:
        NotAdopted: There is one that may not; the caller ends it.
    """
    record = read_record(config.record)
    if record is None:
        return None
    if base is None:
        raise NotAdopted("the base's identity is not known here")
    ours = Signature.of(config, base, inherited_environment())
    _compare(record, ours)
    engine = _open(record)
    try:
        await _ask(record, ours, config, base, probe)
        if not await liveness.canary(CANARY_TIMEOUT_S):
            raise NotAdopted("its first answer is not finite or did not come")
    except BaseException:
        engine.release()
        raise
    return engine


def _compare(record: EngineRecord, ours: Signature) -> None:
    if record.signature is None:
        raise NotAdopted("its record does not say what it was started with")
    differences = ours.differences(record.signature)
    if differences:
        raise NotAdopted(f"it was started with something else: {', '.join(differences)}")


def _open(record: EngineRecord) -> EngineProcess:
    if record.pid is None:
        raise NotAdopted("its start was cut off")
    try:
        engine = EngineProcess(record.token, record.pid)
    except (OSError, psutil.Error):
        raise NotAdopted("its API server has ended") from None
    # only now is the number known to stand for one process: is it the one that carries the mark?
    if record.pid not in {process.pid for process in members(record.token)}:
        engine.release()
        raise NotAdopted("its API server has ended")
    return engine


async def _ask(
    record: EngineRecord, ours: Signature, config: EngineConfig, base: Fingerprint, probe: EngineClient
) -> None:
    try:
        report = await probe.report(timeout_s=REPORT_TIMEOUT_S)
    except HatrackError as error:
        raise NotAdopted(f"it does not answer: {error.message}") from error
    if (report.get("boot"), report.get("signature")) != (boot_id(record.token), ours.digest):
        raise NotAdopted("another engine than the one on record listens on its socket")
    if report.get("plugin") != plugin_digest():
        raise NotAdopted("it runs another version of the plugin")
    try:
        check_compatibility(report, config, base, read_store_id(config.store) or "")
    except IncompatibleEngine as error:
        raise NotAdopted(str(error)) from error
