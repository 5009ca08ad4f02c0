"""xgrammar's native library without torch and transformers, and the vocabulary that the engine gives to it.

``import xgrammar`` brings in both: seconds and 270 MiB. Its bindings need neither, so the package is entered past its
``__init__``: import and vocabulary take 0.6 s and 100 MiB that way.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import orjson


class NoTokenizer(Exception):
    """The base model's vocabulary cannot be read; the message says why."""


def load_native() -> Any:
    """xgrammar's bindings: the classes Grammar, GrammarCompiler, GrammarMatcher, TokenizerInfo.

    Raises:
        ImportError: xgrammar is not installed.
    """
    spec = PathFinder.find_spec("xgrammar")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("xgrammar is not installed")
    package = types.ModuleType("xgrammar")
    package.__path__ = list(spec.submodule_search_locations)
    before = sys.modules.get("torch")
    sys.modules["xgrammar"] = package
    sys.modules["torch"] = None  # type: ignore[assignment] # tvm_ffi imports it where it can
    try:
        importlib.import_module("xgrammar.load_binding")
        return importlib.import_module("xgrammar.base")._core
    except (ImportError, AttributeError):  # another layout than that of 0.2: as a whole, then
        for name in [name for name in sys.modules if name.partition(".")[0] in ("xgrammar", "torch", "tvm_ffi")]:
            del sys.modules[name]
        if before is not None:
            sys.modules["torch"] = before
        importlib.import_module("xgrammar")
        return importlib.import_module("xgrammar.base")._core


def load_tokenizer(native: Any, base: Path) -> Any:
    """The TokenizerInfo that the engine makes of the base model's tokenizer.

    Raises:
        NoTokenizer: There is no `tokenizer.json`, or its vocabulary has an unknown form.
    """
    try:
        raw = (base / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = orjson.loads(raw)
        config = orjson.loads((base / "config.json").read_bytes())
        vocabulary = tokenizer["model"]["vocab"]
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {row[0]: at for at, row in enumerate(vocabulary)}
        ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        size = int(config.get("vocab_size") or config["text_config"]["vocab_size"])
        end = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise NoTokenizer(f"{type(error).__name__}: {error}") from error
    encoded = [""] * size
    for token, at in ids.items():
        if at < size:
            encoded[at] = token
    ends = [end] if isinstance(end, int) else end
    metadata = orjson.loads(str(native.TokenizerInfo._detect_metadata_from_hf(raw)))
    return native.TokenizerInfo(encoded, metadata["vocab_type"], size, ends, metadata["add_prefix_space"])
