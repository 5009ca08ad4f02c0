"""The part of a proof that sends several models in one batch: does the engine keep them apart?

A difference may be the fault of any model in the batch. A neighbour may belong to anybody, so a difference beside a
neighbour never rejects an adapter; only a difference beside the base alone does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from adapters.errors import AdapterError, LogprobsNotFinite, MixedBatchDiffers, ProbeTokensDiffer
from adapters.proof import MIXED_PROBES, PROBES, Logprobs, MixedBatch, Side, is_finite, weigh_mixed_batch
from service.admission.background import BackgroundEngine
from service.engine.client import EngineClient
from service.errors import EngineCut, HatrackError, RateLimited, Timeout, Unavailable
from service.registry.catalog import Catalog, Servable

ENGINE_ONLY_ERRORS: Final = (Unavailable, Timeout, RateLimited, EngineCut)
"""Errors that say nothing about the adapter: the engine is down, goes down, or has no place for the request."""
MAX_KNOWN: Final = 8
"""Maximum number of adapters whose answers are cached, to be used as neighbours."""
NEIGHBOUR_DIFFERS: Final = (
    "In a batch with another adapter the answers differ from those without it; in a batch with the base they do not."
)
"""A warning: which of the two adapters is at fault is not known."""

Neighbours = Callable[[], Awaitable[Sequence[str]]]
"""Digests of adapters that the engine has loaded and that can serve, the first the most wanted."""


async def no_neighbours() -> Sequence[str]:
    """A ``Neighbours`` without any: an adapter is asked in one batch with the base only."""
    return ()


class LoadedAdapters:
    """The ``Neighbours`` of all projects; none if the engine fails.

    Args:
        catalog: Which adapters can serve.
        residency: Which of them the engine has loaded.
        base: The served name of the engine's base: what is sound on another may be corrupt on this one.
    """

    def __init__(self, catalog: Catalog, residency: EngineClient, base: str) -> None:
        self._catalog = catalog
        self._residency = residency
        self._base = base

    async def __call__(self) -> Sequence[str]:
        try:
            loaded = (await self._residency.report(loaded=True)).get("loaded", ())
        except HatrackError:
            return ()
        entries = self._catalog.snapshot.adapters.values()
        servable = {
            version.digest
            for entry in entries
            for version in entry.versions.values()
            if version.servable is Servable.OK
            and version.digest is not None
            and (version.base or self._catalog.base_name) == self._base
        }
        return [digest for digest in loaded if digest in servable]


class MixedBatchCheck:
    """Checks an adapter's answers in one batch with the base and with a neighbour.

    Args:
        engine: The engine's client for background requests.
        neighbours: Returns adapters that can share a batch.
        alone: The probes' log-probabilities under an adapter that is asked alone; raises as ``Prober.prove``.
        healthy_base: The same of the base; raises EngineUnavailable where the engine is poisoned.
    """

    def __init__(
        self,
        engine: BackgroundEngine,
        neighbours: Neighbours,
        *,
        alone: Callable[[str], Awaitable[Logprobs]],
        healthy_base: Callable[[], Awaitable[Logprobs]],
    ) -> None:
        self._engine = engine
        self._neighbours = neighbours
        self._alone = alone
        self._healthy_base = healthy_base
        self._known: OrderedDict[str, Logprobs] = OrderedDict()

    def forget(self) -> None:
        """Forget earlier answers, because the engine has been replaced."""
        self._known.clear()

    async def check(self, digest: str, base: Logprobs, under: Logprobs) -> tuple[MixedBatch, tuple[str, ...]]:
        """Ask at the same time what was asked alone: how far the answers moved, and warnings.

        Where they differ, base and adapter are asked alone once more, then in company again: beside the same
        neighbour, beside the base alone, and beside another neighbour.

        Raises:
            MixedBatchDiffers: The adapter or the base moves where no neighbour is asked.
            ProofError, HatrackError: As the adapter and the base answer when asked alone.
        """
        neighbour = await self._neighbour(digest)
        self._remember(digest, under)
        try:
            return await self._ask(digest, neighbour, base, under), ()
        except MixedBatchDiffers:
            base = await self._healthy_base()
            under = await self._alone(digest)
        if neighbour is not None:
            self._known.pop(neighbour, None)  # it may be of another engine
            if await self._knows(neighbour):
                mixed = await self._ask_beside(digest, neighbour, base, under)
                if mixed is not None:
                    return mixed, ()
        without = await self._ask(digest, None, base, under)
        if neighbour is None:
            return without, ()
        another = await self._neighbour(digest, but=neighbour)
        mixed = None if another is None else await self._ask_beside(digest, another, base, under)
        return (without, (NEIGHBOUR_DIFFERS,)) if mixed is None else (mixed, ())

    async def _ask_beside(self, digest: str, neighbour: str, base: Logprobs, under: Logprobs) -> MixedBatch | None:
        """As ``_ask``; None where somebody moves. The neighbour is forgotten then."""
        try:
            return await self._ask(digest, neighbour, base, under)
        except MixedBatchDiffers:
            self._known.pop(neighbour, None)
            return None

    async def _ask(self, digest: str, neighbour: str | None, base: Logprobs, under: Logprobs) -> MixedBatch:
        try:
            answers = await self._engine.logprobs_together(digest, neighbour, PROBES[:MIXED_PROBES])
        except ENGINE_ONLY_ERRORS:
            raise
        except HatrackError as error:  # it is not known which model it is about
            raise MixedBatchDiffers(
                f"In a batch with other models the engine cannot answer: {error.message}"
            ) from error
        if not all(is_finite(rows, MIXED_PROBES) for rows in answers if rows is not None):
            raise MixedBatchDiffers("In a batch with other models some log-probabilities are missing or not finite.")
        beside = None
        if neighbour is not None and answers[2] is not None:
            beside = Side(self._known[neighbour][:MIXED_PROBES], answers[2])
        sides = Side(base[:MIXED_PROBES], answers[0]), Side(under[:MIXED_PROBES], answers[1])
        try:
            return weigh_mixed_batch(*sides, beside)
        except (ProbeTokensDiffer, LogprobsNotFinite) as error:
            raise MixedBatchDiffers(f"In a batch with other models: {error.message}") from error

    async def _neighbour(self, digest: str, but: str | None = None) -> str | None:
        """A loaded adapter whose answers alone are known; where none is, the first that can be asked."""
        loaded = [neighbour for neighbour in await self._neighbours() if neighbour not in (digest, but)]
        for neighbour in reversed(self._known):
            if neighbour in loaded:
                return neighbour
        return loaded[0] if loaded and await self._knows(loaded[0]) else None

    async def _knows(self, digest: str) -> bool:
        """Ask an adapter alone and remember it; False where it does not answer as it should."""
        try:
            self._remember(digest, await self._alone(digest))
        except (AdapterError, HatrackError):
            return False
        return True

    def _remember(self, digest: str, answers: Logprobs) -> None:
        self._known[digest] = answers
        self._known.move_to_end(digest)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
