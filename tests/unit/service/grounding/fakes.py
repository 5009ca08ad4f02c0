"""Stores in memory, and a provider that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.grounding.hook import Hook
from service.grounding.provider import Passage, Query
from service.grounding.template import PassageFormatter
from service.knowledge.service import Knowledge
from service.knowledge.types import FileCounts, StoreInfo

RETURNS = Passage("p-1", "Unworn goods may be sent back within 45 days.", 0.9, "returns.md", "vs_a", "file-1")
ORDERS = Passage("p-2", "order TW-2041 arrives on Thursday", 0.5, "orders.csv", "vs_a", "file-2", {"year": 2026.0})


class Known(Authenticator):
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def authenticate(self, headers: Any) -> Caller:
        return self._caller


def key(**limits: Any) -> Caller:
    return Caller("k", "default", frozenset({Scope.INFER}), **limits)


class MemoryStores:
    """The one method of the stores that the hook asks."""

    def __init__(self, *known: tuple[str, str, str | None]) -> None:
        self.known = {(project, store_id): name for project, store_id, name in known}

    async def get_store(self, project: str, store_id: str) -> StoreInfo | None:
        if (project, store_id) not in self.known:
            return None
        name = self.known[project, store_id]
        return StoreInfo(store_id, project, name, None, {}, 1, 1, 0, FileCounts())


class Told:
    """Gives ``found``, or raises it; waits before that for as long as ``late_s`` says."""

    def __init__(self, *found: Any, late_s: float = 0, error: Exception | None = None) -> None:
        self.found: Sequence[Any] = found
        self.late_s = late_s
        self.error = error
        self.asked: list[tuple[Query, float]] = []

    async def retrieve(self, query: Query, deadline: float) -> Sequence[Passage]:
        self.asked.append((query, deadline))
        await asyncio.sleep(self.late_s)
        if self.error is not None:
            raise self.error
        return self.found


class Embedded(Knowledge):
    """The real check of who may read which store, over stores in memory; the passages are another provider's."""

    def __init__(self, provider: Any) -> None:
        super().__init__(STORES, None, None, None)  # type: ignore[arg-type]  # the one method that is asked
        self._provider = provider

    async def retrieve(self, query: Query, deadline: float) -> Sequence[Passage]:
        found: Sequence[Passage] = await self._provider.retrieve(query, deadline)
        return found


STORES = MemoryStores(("default", "vs_a", "policies"), ("default", "vs_b", None), ("other", "vs_c", "policies"))


def hook(
    provider: Any,
    *,
    context: int | None = 2048,
    on_failure: str = "fail_open",
    min_score: float = 0.0,
    **more: Any,
) -> Hook:
    providers = {"embedded": Embedded(provider), "webhook": Told(), **more}
    quoter = PassageFormatter(bytes(32), ("<|im_start|>", "<|im_end|>"))
    # only one that is to be late is: on a busy machine any answer may take a while
    timeout_s = 0.2 if isinstance(provider, Told) and provider.late_s else 60.0
    return Hook(providers, quoter, context=context, on_failure=on_failure, timeout_s=timeout_s, min_score=min_score)
