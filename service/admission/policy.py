"""The numbers by which the gate decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.config import Settings

CPU_PREFILL: Final = 192
GPU_PREFILL: Final = 16384
"""Two of vLLM's usual prefill steps: while one is computed the next must be there already."""
COUNTING_WIDTH: Final = 2
"""Of the engine's threads that tokenize (`service.engine.config.RENDERER_THREADS`), those that requests may have which
run no model: prompts never wait for them alone."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the scheduler may do. Tokens are tokens of prompt and answer unless said otherwise."""

    width: int
    """Requests in the engine at once, at most."""
    common: int
    """Of these, the places that everybody may take. The others are for flows that ask for less than their share."""
    slots: int | None
    """Different adapters in the engine at once; None: it does not matter here."""
    queue_size: int
    """Requests that may wait."""
    queue_share: float = 0.5
    """Part of the queue that one key, and that one project, may hold."""
    prefill: int | None = None
    """Prompt tokens of requests let in that have shown no token yet; None: no bound."""
    burst: int = 1024
    """How far ahead of its turn a flow may be, tokens, and still use the reserve."""
    turn_s: float = 5.0
    """How long an adapter keeps its slot, s, while another waits for one."""
    background_width: int = 1
    """Places that background requests may hold while no caller waits."""
    background_patience_s: float = 5.0
    """A background request that has waited this long goes in beside waiting callers; only one in this time."""

    @property
    def draining(self) -> int:
        """Slots that may be running empty at once: an adapter that is not fed leaves places of the batch unused."""
        return max(1, (self.slots or 1) // 4)

    @property
    def share_size(self) -> int:
        """Requests that one key, and that one project, may have in the queue."""
        return max(1, int(self.queue_size * self.queue_share))

    @classmethod
    def for_counting(cls, settings: Settings) -> Policy:
        """Requests that only tokenize: fair as well, and few at once, since the engine has few threads for that."""
        return cls(
            width=COUNTING_WIDTH,
            common=COUNTING_WIDTH,
            slots=None,
            queue_size=settings.queue_size,
            queue_share=settings.queue_share,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """Fair, or first come, first served: then every request goes on at once, and vLLM's own queue decides."""
        width = settings.engine_max_seqs
        if settings.admission == "fifo":
            most = width + settings.queue_size
            return cls(width=most, common=most, slots=None, queue_size=0, background_width=most)
        on_cpu = settings.device == "cpu"
        common = min(width, settings.admission_width or width - width // (8 if on_cpu else 16))
        return cls(
            width=width,
            common=common,
            slots=settings.engine_slots,
            queue_size=settings.queue_size,
            queue_share=settings.queue_share,
            prefill=settings.admission_prefill or (CPU_PREFILL if on_cpu else GPU_PREFILL),
            turn_s=settings.slot_turn_s,
            background_width=max(1, common // 4),
        )
