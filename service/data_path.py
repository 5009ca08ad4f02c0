"""How the data path, and what a front shows of it, are connected to the engines."""

from __future__ import annotations

from collections.abc import Callable

from service.config import Settings
from service.engine.remote import RemoteEngine
from service.fleet import EngineParts, Fleet
from service.inference.calls import CacheSalts
from service.inference.dispatch import Dispatch
from service.inference.engines import Dispatches
from service.objects.cache import Copies
from service.telemetry.account import MetricsAccount
from service.telemetry.admission import AdmissionSource, ResidencySource
from service.telemetry.engine import EngineSource
from service.telemetry.exposition import Labelled, Source
from service.telemetry.telemetry import Telemetry


def make_dispatch(
    fleet: Fleet,
    *,
    embedder_name: str | None,
    suspect: Callable[[str, str], None],
    copies: Copies | None = None,
    salts: CacheSalts | None = None,
) -> Dispatch | Dispatches:
    """Each engine's dispatch, and of several the choice among them.

    Args:
        embedder_name: The model that answers embeddings beside the engines, for error messages; None: there is none.
        suspect: Called with an adapter's digest and its base's served name when a request failed in the engine.
        copies: The local copies of adapters' files; None: they are all there.
        salts: Of the projects' prefix caches; None: each engine's own.
    """

    def made(each: EngineParts) -> Dispatch:
        base = each.base.served_name
        return Dispatch(
            each.agent.settings,
            each.watched.client,
            base,
            embedder_name=embedder_name,
            suspect=lambda digest: suspect(digest, base),
            saw_tokens=each.watched.saw_tokens,
            admission_queue=each.admission.queue,
            counting=each.admission.counting,
            engine_clock=each.clock,
            copies=None if isinstance(each.watched, RemoteEngine) else copies,  # an agent has its own
            salts=salts,
        )

    dispatches = {each.agent.name: made(each) for each in fleet.parts}
    if len(dispatches) == 1:
        return dispatches[fleet.default.agent.name]
    return Dispatches(fleet.bases, dispatches)


def watch_engines(telemetry: Telemetry, fleet: Fleet, settings: Settings) -> None:
    """Show the engines, as all of their users see them."""
    account = telemetry.account
    engines = {each.agent.name: _sources(each, account, settings.queue_size) for each in fleet.parts}
    for number in range(3):
        telemetry.watch(Labelled("engine", {name: sources[number] for name, sources in engines.items()}))


def _sources(each: EngineParts, account: MetricsAccount, queue_size: int) -> tuple[Source, Source, Source]:
    config = each.watched.config
    return (
        EngineSource(each.watched, each.watched.client, slots=config.slots, resident_limit=config.resident),
        AdmissionSource(each.admission.queue, queue_size, account),
        ResidencySource(each.admission.residency, account),
    )
