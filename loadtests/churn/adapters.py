"""The adapters of a churn: which versions each may answer with at a moment, and what each version spells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from tests.support.gateway import Gateway
from tests.support.spelling import make_speller, words

ABSENT: Final = ""
"""In place of a word: there is no such adapter."""
UNTOLD: Final = "(not acknowledged)"
"""In place of a word: the upload's answer was lost, so nobody knows which of those sent the version is."""


@dataclass
class Adapter:
    """An adapter's name, and the words that an answer under it may be."""

    name: str
    possible: set[str] = field(default_factory=lambda: {ABSENT})
    """Of a request that is sent now: several while a change is not acknowledged."""
    log: list[str] = field(default_factory=list)
    """Every word that it was ever asked to change to, so that a request can see what came while it ran."""

    def may_become(self, *words: str) -> None:
        """A change is about to be asked for."""
        self.log += words
        self.possible |= set(words)

    def became(self, word: str) -> None:
        """The change was acknowledged."""
        self.possible = {word}


class AdapterMaker:
    """Makes adapters that spell one word after the other, and pushes them.

    Args:
        gateway: Where to.
        directory: For their files.
    """

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self._gateway, self._directory = gateway, directory
        self._words: Iterator[str] = words()
        self.words: dict[str, str] = {}
        """What each digest spells, of the uploads that were acknowledged."""

    def push_first(self, adapter: Adapter) -> httpx.Response | None:
        """Push a new adapter, whose first version goes live by itself; the answer if it was refused."""
        word = next(self._words)
        adapter.may_become(word)
        pushed = self._push(adapter.name, word, {})
        if pushed.status_code != httpx.codes.CREATED:
            return pushed
        adapter.became(word)
        return None

    def push_next(self, name: str) -> tuple[str, httpx.Response]:
        """Push a further version, to which nothing points: the word that it spells, and 201 or what went wrong."""
        word = next(self._words)
        return word, self._push(name, word, {"alias": ""})

    def _push(self, name: str, word: str, fields: Mapping[str, str]) -> httpx.Response:
        files = make_speller(self._directory / word.encode().hex(), word)
        response = self._gateway.push(name, files.directory, **fields)
        if response.status_code == httpx.codes.CREATED:
            self.words[response.json()["digest"]] = word
        return response

    def live_word(self, http: httpx.Client, name: str) -> str:
        """What the version spells that `live` points to; ABSENT if there is no such adapter or version."""
        shown = http.get(f"/v1/adapters/{name}")
        if shown.status_code == httpx.codes.NOT_FOUND:
            return ABSENT
        version = shown.raise_for_status().json()["aliases"].get("live")
        return ABSENT if version is None else self.word_of(http, name, version)

    def word_of(self, http: httpx.Client, name: str, version: int) -> str:
        """What a version spells, which may be one whose upload was not acknowledged."""
        shown = http.get(f"/v1/adapters/{name}/versions/{version}").raise_for_status().json()
        return self.words.setdefault(shown["digest"], UNTOLD)


Damage = Callable[[Path], None]


def _scaled(factor: float) -> Damage:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS_FILE)
        with np.errstate(invalid="ignore"):  # zero times infinity
            changed = {name: value * np.float32(factor) for name, value in tensors.items()}
        save_file(changed, directory / WEIGHTS_FILE, metadata={"format": "pt"})

    return damage


def _truncate(directory: Path) -> None:
    weights = directory / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-64])


def _garble(directory: Path) -> None:
    (directory / CONFIG_FILE).write_bytes(b"\0" * 64)


def _remove(directory: Path) -> None:
    for path in list(directory.iterdir()):
        path.unlink()


DAMAGES: Final[Mapping[str, Damage]] = {
    "not a number": _scaled(float("nan")),
    "infinite": _scaled(float("inf")),
    "overflowing": _scaled(1e30),
    "truncated": _truncate,
    "no configuration": _garble,
    "gone": _remove,
}


def damage_stored(gateway: Gateway, digest: str, number: int) -> str:
    """Damage an adapter's files in the store behind the gateway's back; returns how."""
    kind = list(DAMAGES)[number % len(DAMAGES)]
    directory = gateway.home / "adapters" / digest
    directory.chmod(0o700)
    for path in directory.iterdir():
        path.chmod(0o600)
    DAMAGES[kind](directory)
    return kind
