"""Grammars are compiled beside the engine's work, not in its way, and always by xgrammar.

vLLM compiles with eight threads at the priority of the forward pass, one grammar at a time on a machine of two cores,
and builds the compiler when the first request needs it, in whichever backend that request fell back to. The gateway has
tried each grammar against xgrammar (``service/structured``): here it must be that, too.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched

LOW: Final = 10
"""The niceness of threads that compile: about a tenth of the weight of one that computes."""
AT_ONCE: Final = 4
"""Grammars that compile at the same time; a small one does not wait behind a large one."""
MAX_THREADS: Final = 8
_LOG: Final = logging.getLogger("hatrack.plugin")


def install() -> None:
    """Patch vLLM's manager of structured outputs and xgrammar's compiler.

    Raises:
        PluginError: One of them is not as expected.
    """
    import xgrammar
    from vllm.v1.structured_output import StructuredOutputManager, backend_xgrammar

    manager_init = checked_attribute(StructuredOutputManager, "__init__", "self", "vllm_config")
    if is_patched(manager_init):
        return
    compiler_init = checked_attribute(xgrammar.GrammarCompiler, "__init__", "self", "tokenizer_info")
    checked_attribute(backend_xgrammar, "has_xgrammar_unsupported_json_features", "schema")
    checked_attribute(backend_xgrammar, "XgrammarBackend")
    threads = min(MAX_THREADS, max(1, (os.cpu_count() or 1) // 4))

    def with_few_threads(self: Any, tokenizer_info: Any, *, max_threads: int = MAX_THREADS, **more: Any) -> None:
        compiler_init(self, tokenizer_info, max_threads=min(max_threads, threads), **more)

    def prepared(self: Any, vllm_config: Any) -> None:
        manager_init(self, vllm_config)
        _prepare(self, vllm_config, backend_xgrammar.XgrammarBackend)

    def supported(schema: Any) -> bool:
        """A keyword that xgrammar does not know is not enforced. The backends that vLLM would ask instead would only
        look at the schema, on the API server's loop and without a bound; xgrammar compiles it in any case."""
        return False

    xgrammar.GrammarCompiler.__init__ = mark_patched(with_few_threads)
    StructuredOutputManager.__init__ = mark_patched(prepared)
    backend_xgrammar.has_xgrammar_unsupported_json_features = mark_patched(supported)


def _prepare(manager: Any, vllm_config: Any, backend: Any) -> None:
    if not hasattr(manager, "executor"):  # no tokenizer, no structured outputs
        return
    manager.executor.shutdown(wait=False)
    manager.executor = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="grammar", initializer=_lower_priority)
    if vllm_config.structured_outputs_config.backend not in ("auto", "xgrammar"):
        return
    try:
        manager.backend = backend(
            vllm_config, tokenizer=manager.tokenizer, vocab_size=vllm_config.model_config.get_vocab_size()
        )
    except Exception:  # a tokenizer that xgrammar cannot read: vLLM refuses such requests one by one
        _LOG.exception("xgrammar cannot be prepared")


def _lower_priority() -> None:
    """Of the calling thread; those that xgrammar starts from it inherit that."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW)
