"""One trial, in a process forked for it: compile as the engine does, then decode along a few paths.

Compiling is only half of what a grammar costs: the engine fills a mask over the vocabulary before each token, in the
loop that all requests share. Some grammars compile in milliseconds and take seconds for each mask.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from service.structured.bounds import is_lark
from service.structured.parts import GrammarPart

STEPS: Final = 64
"""Tokens along each path."""
LONG_STEPS: Final = 768
"""Tokens along a path on which masks become dearer and dearer."""
MIN_STEPS: Final = 16
"""A mean is taken over at least so many tokens: of an answer with fewer, nobody has to wait for more."""
GROWING_MS: Final = 1.0
"""A quarter of a path that takes longer than this, and twice as long as one before, is followed further."""
TAIL: Final = "hatrack_tail"
"""Name of the rule that a tail is compiled as."""
POOL: Final = 1024
"""Tokens that a path of short, or of long ones is made of."""


class Invalid(Exception):
    """The specification cannot be compiled; the message is xgrammar's."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs that a trial measured.

    Attributes:
        size: Memory of the compiled grammar, bytes.
        token_ms: Mean CPU time of a token's mask on the dearest path, ms.
        worst_ms: CPU time of the dearest mask, ms.
    """

    size: int
    token_ms: float
    worst_ms: float


class Vocabulary:
    """The tokens that paths are made of."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = int(tokenizer.vocab_size())
        self.words = (self.size + 31) // 32
        lengths = np.fromiter((len(token) for token in tokenizer.decoded_vocab()), np.int32)
        order = np.argsort(lengths, kind="stable")
        self.short = order[lengths[order] > 0][:POOL].astype(np.int64)
        self.long = order[-POOL:].astype(np.int64)


def try_out(native: Any, vocabulary: Vocabulary, kind: str, text: str, parts: list[GrammarPart]) -> Costs:
    """Compile a specification and its parts, and decode along paths of each.

    Raises:
        Invalid: It cannot be compiled.
    """
    compiler = _Compiler(native, vocabulary)
    whole = compiler.compile(kind, text)
    decoder = _Decoder(native, vocabulary)
    decoder.follow(whole)
    for part in parts:
        with suppress(Invalid):  # cut out of its place it need not make sense; the whole does
            decoder.follow(_compile_part(compiler, kind, text, part))
    return Costs(int(whole.memory_size_bytes()), decoder.token_ms, decoder.worst_ms)


class _Compiler:
    """Compiles a specification and its parts as one engine would: what they have in common is compiled once."""

    def __init__(self, native: Any, vocabulary: Vocabulary) -> None:
        self._native = native
        self._tokenizer = vocabulary.tokenizer
        self._shared = native.GrammarCompiler(vocabulary.tokenizer, 1, True, -1)

    def compile(self, kind: str, text: str, root: str = "root") -> Any:
        """See `compile_spec`."""
        try:
            return compile_spec(self._shared, kind, text, root)
        except Invalid as error:
            if "has_value()" not in str(error):
                raise
            # 0.2's cache across grammars fails an assertion of its own for some; without it they compile
            return compile_spec(self._native.GrammarCompiler(self._tokenizer, 1, False, -1), kind, text, root)


def compile_spec(compiler: Any, kind: str, text: str, root: str = "root") -> Any:
    """What vLLM's xgrammar backend does with a specification of this kind.

    Raises:
        Invalid: xgrammar refuses it.
    """
    try:
        if kind == "json":
            return compiler.compile_json_schema(text, True, None, None, True, None, False)
        if kind == "regex":
            return compiler.compile_regex(text)
        if kind == "choice":
            return compiler.compile_grammar_from_strings(choice_grammar(json.loads(text)), "root")
        if kind == "structural_tag":
            return compiler.compile_structural_tag(_with_legacy_tags(text))
        if is_lark(text):
            return compiler.compile_lark(text, [], [])
        return compiler.compile_grammar_from_strings(text, root)
    except MemoryError:
        raise
    except Exception as error:  # the bindings raise whatever C++ threw, by many names
        if "bad_alloc" in str(error):  # C++'s name for it; the bindings make a RuntimeError of it
            raise MemoryError from error
        raise Invalid(_reason(error)) from error


def choice_grammar(choices: list[str]) -> str:
    """The grammar that vLLM makes of `choice`."""
    plain = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}

    def escaped(char: str) -> str:
        return plain.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char)

    return "root ::= " + " | ".join('"' + "".join(map(escaped, choice)) + '"' for choice in choices)


def _with_legacy_tags(text: str) -> str:
    """A structural tag in xgrammar's present form; the former one has `structures` and `triggers`."""
    tag = orjson.loads(text)
    if "structures" not in tag:
        return text
    tags = [
        {
            "type": "tag",
            "begin": item["begin"],
            "content": {"type": "json_schema", "json_schema": item["schema"]},
            "end": item["end"],
        }
        for item in tag["structures"]
    ]
    form = {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}
    return orjson.dumps({"type": "structural_tag", "format": form}).decode()


def _compile_part(compiler: _Compiler, kind: str, text: str, part: GrammarPart) -> Any:
    text = part.within or text
    if part.kind == "pattern":
        return compiler.compile("json", orjson.dumps({"type": "string", "pattern": part.text}).decode())
    if part.kind == "ref":
        schema = orjson.loads(text)
        inner = {"$ref": part.text}
        return compiler.compile(
            "json", orjson.dumps({**schema, **inner} if isinstance(schema, dict) else inner).decode()
        )
    if part.kind in ("rule", "tail"):
        if is_lark(text):
            moved = re.sub(r"\bstart\b", "start_", text)
            return compiler.compile("grammar", f"start: {part.text}\n{moved}")
        if part.kind == "rule":
            return compiler.compile("grammar", text, part.text)
        return compiler.compile("grammar", f"{TAIL} ::= {part.text}\n{text}", TAIL)
    return compiler.compile(part.kind, part.text)


def _reason(error: Exception) -> str:
    """The last line of a C++ error without its place in the source, short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^\[[^\]]*\]\s*\S*:\d+:\s*", "", lines[-1] if lines else "")
    return last[:200]


class _Decoder:
    """Fills masks and takes tokens, as an answer would."""

    def __init__(self, native: Any, vocabulary: Vocabulary) -> None:
        self._native = native
        self._vocabulary = vocabulary
        self._mask = np.full((1, vocabulary.words), -1, dtype=np.int32)
        self._bits = self._mask.view(np.uint32)[0]
        self._rng = np.random.default_rng(0)
        self.token_ms = 0.0
        self.worst_ms = 0.0

    def follow(self, compiled: Any) -> None:
        """Decode along a path of short tokens, one of long ones and one of any."""
        for pool in (self._vocabulary.long, None, self._vocabulary.short):
            times = self._path(compiled, pool, STEPS)
            quarter = len(times) // 4
            if quarter >= MIN_STEPS and sum(times[-quarter:]) > 2 * sum(times[quarter : 2 * quarter]) > GROWING_MS:
                times = self._path(compiled, pool, LONG_STEPS)
                times = times[-(len(times) // 4) :]
            self.worst_ms = max([self.worst_ms, *times])
            self.token_ms = max(self.token_ms, sum(times) / max(len(times), MIN_STEPS))

    def _path(self, compiled: Any, pool: Any, steps: int) -> list[float]:
        """CPU times of the masks along one path, ms."""
        matcher = self._native.GrammarMatcher(compiled, None, False, 0, None)
        times: list[float] = []
        for _ in range(steps):
            began = time.thread_time()
            matcher.fill_next_token_bitmask(self._mask, 0, False)
            token = self._pick(pool)
            if token is None:
                break
            filled = time.thread_time()
            accepted = matcher.accept_token(token, False)
            times.append((time.thread_time() - filled + filled - began) * 1000)
            if not accepted or matcher.is_terminated():
                break
        return times

    def _pick(self, pool: Any) -> int | None:
        """An allowed token, of the pool where that has one; None where nothing is allowed."""
        if pool is not None:
            allowed = pool[(self._bits[pool >> 5] >> (pool & 31).astype(np.uint32)) & 1 == 1]
            if len(allowed):
                return int(allowed[self._rng.integers(len(allowed))])
        words = np.flatnonzero(self._bits)
        if not len(words):
            return None
        word = int(words[self._rng.integers(len(words))])
        bits = [bit for bit in range(32) if int(self._bits[word]) >> bit & 1]
        token = word * 32 + bits[int(self._rng.integers(len(bits)))]
        return token if token < self._vocabulary.size else None
