"""The limits of an admission queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.config import Settings
from service.config.engine import CPU_CHUNK_TOKENS

CPU_PREFILL: Final = 192
GPU_PREFILL: Final = 16384
"""Two of vLLM's default prefill steps, so that the next one is ready while one is computed."""
COUNTING_WIDTH: Final = 2
"""How many of the engine's tokenizer threads (`service.engine.config.RENDERER_THREADS`) requests that run no model may
use, so that prompts always find one free."""
EMBEDDING_WIDTH: Final = 4
"""How many requests the embedder works on at once, in turns; what is queued beyond that is fair between projects and
keys."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The scheduler's limits. Tokens are tokens of prompt and answer unless stated otherwise."""

    width: int
    """Maximum number of requests in the engine at once."""
    common: int
    """Of these, the places that any flow may take. The rest are reserved for small flows."""
    slots: int | None
    """Different adapters in the engine at once; None: unlimited."""
    queue_size: int
    """Maximum number of requests that wait."""
    queue_share: float = 0.5
    """Fraction of the queue that one key, and that one project, may hold."""
    prefill: int | None = None
    """Maximum prompt tokens of admitted requests that have no first token yet; None: unlimited."""
    chunk: int | None = None
    """Of these, how many one prompt counts as at most: the engine reads no more of it in one step. None: all."""
    burst: int = 1024
    """How far ahead of its turn a flow may be, in tokens, and still use the reserved places."""
    turn_s: float = 5.0
    """How long an adapter keeps its slot while another waits for one, s."""
    background_width: int = 1
    """Maximum number of background requests in the engine while no caller waits."""
    background_patience_s: float = 5.0
    """After this wait, s, one background request is admitted ahead of waiting callers; at most one per period."""
    server: str = "the engine"
    """What is waited for, in messages."""

    @property
    def draining(self) -> int:
        """Maximum number of slots that drain at once; a draining adapter leaves places of the batch unused."""
        return max(1, (self.slots or 1) // 4)

    @property
    def share_size(self) -> int:
        """Maximum number of queued requests of one key, and of one project."""
        return max(1, int(self.queue_size * self.queue_share))

    @classmethod
    def for_counting(cls, settings: Settings) -> Policy:
        """For requests that only tokenize: few at once, because the engine has few threads for that."""
        return cls(
            width=COUNTING_WIDTH,
            common=COUNTING_WIDTH,
            slots=None,
            queue_size=settings.queue_size,
            queue_share=settings.queue_share,
        )

    @classmethod
    def for_embedding(cls, settings: Settings) -> Policy:
        """For the embedder: one of its places is kept for those who have asked for little."""
        return cls(
            width=EMBEDDING_WIDTH,
            common=EMBEDDING_WIDTH - 1,
            slots=None,
            queue_size=settings.queue_size,
            queue_share=settings.queue_share,
            server="the embedder",
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """Fair queueing; or, with `fifo`, every request goes to vLLM at once and waits in its queue."""
        width = settings.engine_max_seqs
        if settings.admission == "fifo":
            total = width + settings.queue_size
            return cls(width=total, common=total, slots=None, queue_size=0, background_width=total)
        on_cpu = settings.device == "cpu"
        common = min(width, settings.admission_width or width - width // (8 if on_cpu else 16))
        return cls(
            width=width,
            common=common,
            slots=settings.engine_slots,
            queue_size=settings.queue_size,
            queue_share=settings.queue_share,
            prefill=settings.admission_prefill or (CPU_PREFILL if on_cpu else GPU_PREFILL),
            chunk=CPU_CHUNK_TOKENS if on_cpu else None,
            turn_s=settings.slot_turn_s,
            background_width=max(1, common // 4),
        )
