"""What one would write by hand: transformers and PEFT in one process, which swaps adapters between batches.

As S-LoRA's baseline: the oldest request that waits chooses the adapter, and all that wait for the same one go with it.
A batch runs to its end, padded to its longest prompt and answer, before the next is looked at.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from loadtests.support import Timing
from loadtests.thousand.workload import Request


class _FirstToken(StoppingCriteria):
    """Notes when the first token is there; never stops."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Swapping:
    """The base with as many adapters in memory as are allowed, the least recently used of which goes first.

    Args:
        base: Directory of the base model.
        adapters: Directories of the adapters.
        dtype: Of the base and the adapters, such as ``"float32"``.
        resident: How many adapters are kept in memory.
        batch: The most requests in one batch.
    """

    def __init__(self, base: Path, adapters: Sequence[Path], *, dtype: str, resident: int, batch: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        self._adapters, self._resident, self._batch = adapters, resident, batch
        self._model = PeftModel.from_pretrained(plain, adapters[0], adapter_name=adapters[0].name)
        self._loaded = OrderedDict({0: None})

    def run(self, requests: Sequence[Request], connections: int = 0) -> list[Timing]:
        """Answer all; with ``connections``, that many are outstanding at a time and arrival times do not count."""
        began = time.perf_counter()
        left, waiting, timings = list(requests), list[tuple[Request, Timing]](), list[Timing]()
        while left or waiting:
            now = time.perf_counter()
            while left and (len(waiting) < connections if connections else left[0].at_s <= now - began):
                request = left.pop(0)
                sent = now if connections else began + request.at_s
                waiting.append((request, Timing(self._adapters[request.adapter].name, sent)))
            if not waiting:
                time.sleep(max(0.0, began + left[0].at_s - now))
                continue
            head = waiting[0][0].adapter
            batch = [pair for pair in waiting if pair[0].adapter == head][: self._batch]
            waiting = [pair for pair in waiting if pair not in batch]
            self._answer(head, batch)
            timings += [timing for _, timing in batch]
        return timings

    def _answer(self, adapter: int, batch: Sequence[tuple[Request, Timing]]) -> None:
        self._use(adapter)
        tokens = max(request.tokens for request, _ in batch)
        inputs = self._tokenizer([request.text for request, _ in batch], return_tensors="pt", padding=True)
        first = _FirstToken()
        with torch.inference_mode():
            self._model.generate(
                **inputs,
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                stopping_criteria=StoppingCriteriaList([first]),
            )
        for request, timing in batch:
            timing.status, timing.tokens = 200, request.tokens
            timing.first, timing.end = first.at, time.perf_counter()

    def _use(self, adapter: int) -> None:
        name = self._adapters[adapter].name
        if adapter not in self._loaded:
            if len(self._loaded) >= self._resident:
                gone, _ = self._loaded.popitem(last=False)
                self._model.delete_adapter(self._adapters[gone].name)
            self._model.load_adapter(str(self._adapters[adapter]), adapter_name=name)
        self._loaded[adapter] = None
        self._loaded.move_to_end(adapter)
        self._model.set_adapter(name)
