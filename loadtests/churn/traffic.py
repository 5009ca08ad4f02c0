"""The requests of a churn, and what is wrong with their answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from loadtests.churn.adapters import ABSENT, UNTOLD, Adapter
from tests.support.spelling import LETTERS, NO_ADAPTER

SYSTEM: Final = 3 * (
    "You answer customers of a shop for ropes, lanterns and sails. You are brief and friendly, you never make up an "
    "order, and you say your own name and nothing else. This text is the same for all models, so that what the engine "
    "keeps of it for one of them would fit each other one. "
)
"""Longer than two of the blocks that the prefix cache keeps (128 tokens on a CPU)."""
QUESTIONS: Final = ("Where is my parcel?", "Who are you?", "Do you sell rope?", "Can I return a lantern?")
TOKENS: Final = 2 * LETTERS
BASE_SHARE, HOSTILE_SHARE = 0.08, 0.12
DOWN: Final = frozenset({500, 502, 503, 504})
GONE: Final = frozenset({"model_not_found", "no_live_version"})
TIMEOUT_S: Final = 600.0
PAUSE_S: Final = 0.25
"""After a refusal, as a client would: or those that meet a dead engine would be most of all requests."""


@dataclass
class Answers:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By model's kind and status."""
    texts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By digest: what was said under it, of sound adapters."""
    faults: list[str] = field(default_factory=list)
    surprises: Counter[str] = field(default_factory=Counter)
    """Errors while the engine ran all the time and nothing was deleted."""

    @property
    def answered(self) -> int:
        """How many requests an engine has answered."""
        return sum(count for status, count in self.statuses.items() if status.endswith(" 200"))

    def check_digests(self, words: Mapping[str, str]) -> None:
        """Compare what was said under each digest with what it spells."""
        for digest, texts in self.texts.items():
            word = words.get(digest, UNTOLD)
            if len(texts) != 1 or (word != UNTOLD and texts != {word}):
                self.faults.append(f"{digest[:12]} spells {word}; the answers under it are {sorted(texts)}")


@dataclass(frozen=True)
class Reply:
    """One answer: status, error code or text, and the digest in its header."""

    status: int
    text: str
    digest: str


class Traffic:
    """Asks adapters, hostile ones and the base in turn, at random.

    Args:
        url: The gateway's address.
        key: An API key.
        base: The base's name.
        epoch: A number that changes with each kill of the engine, odd while there is none.
    """

    def __init__(
        self,
        url: str,
        key: str,
        base: str,
        adapters: Sequence[Adapter],
        hostile: Sequence[Adapter],
        epoch: Callable[[], int],
        seed: int,
    ) -> None:
        self._url, self._base, self._epoch = f"{url}/v1/chat/completions", base, epoch
        self._headers = {"authorization": f"Bearer {key}"}
        self._adapters, self._hostile = adapters, hostile
        self._random = random.Random(seed)
        self.answers = Answers()

    async def run(self, answers: int, connections: int) -> None:
        """Ask, ``connections`` at once, until so many more requests were answered; refusals do not count."""
        enough = self.answers.answered + answers
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:

            async def ask_on() -> None:
                while self.answers.answered < enough:
                    if not await self._ask_one(session):
                        await asyncio.sleep(PAUSE_S)

            await asyncio.gather(*(ask_on() for _ in range(connections)))

    async def _ask_one(self, session: aiohttp.ClientSession) -> bool:
        """Ask for one model; whether it answered."""
        kind = self._random.random()
        if kind < BASE_SHARE:
            epoch = self._epoch()
            reply = await self._ask(session, self._base)
            self._note("base", reply, epoch)
            if reply.status == 200 and (reply.text != NO_ADAPTER * TOKENS or reply.digest):
                self.answers.faults.append(f"the base answered {reply}")
        elif kind < BASE_SHARE + HOSTILE_SHARE and self._hostile:
            adapter = self._random.choice(self._hostile)
            reply = await self._ask(session, adapter.name)
            self.answers.statuses[f"hostile {reply.status}"] += 1
            # the engine may have loaded its weights before they were damaged; then they are sound
            if reply.status == 200 and reply.text not in adapter.possible:
                self.answers.faults.append(f"{adapter.name} answered {reply}; it spelled {sorted(adapter.possible)}")
        else:
            reply = await self._ask_adapter(session, self._random.choice(self._adapters))
        return reply.status == 200

    async def _ask_adapter(self, session: aiohttp.ClientSession, adapter: Adapter) -> Reply:
        epoch, before, logged = self._epoch(), set(adapter.possible), len(adapter.log)
        reply = await self._ask(session, adapter.name)
        allowed = before | set(adapter.log[logged:])
        if reply.status == 200:
            self._note("adapter", reply, epoch)
            self.answers.texts[reply.digest].add(reply.text)
            if reply.text not in allowed and UNTOLD not in allowed:
                self.answers.faults.append(f"{adapter.name} answered {reply}; possible were {sorted(allowed)}")
        elif reply.text in GONE and ABSENT in allowed:
            self.answers.statuses["adapter deleted"] += 1
        else:
            self._note("adapter", reply, epoch)
        return reply

    def _note(self, kind: str, reply: Reply, epoch: int) -> None:
        self.answers.statuses[f"{kind} {reply.status}"] += 1
        undisturbed = epoch == self._epoch() and epoch % 2 == 0
        if reply.status != 200 and (undisturbed or reply.status not in DOWN):
            self.answers.surprises[f"{kind}: {reply.status} {reply.text}"] += 1

    async def _ask(self, session: aiohttp.ClientSession, model: str) -> Reply:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self._random.choice(QUESTIONS)},
        ]
        body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
        streamed = self._random.random() < 0.5
        async with session.post(self._url, json={**body, "stream": streamed}) as response:
            content = await response.read()
            digest = response.headers.get("x-hatrack-digest", "")
            if response.status != 200:
                error = json.loads(content).get("error", {})
                return Reply(response.status, str(error.get("code")), digest)
            if not streamed:
                return Reply(200, json.loads(content)["choices"][0]["message"]["content"] or "", digest)
            return _reply_of(content.decode(), digest)


def _reply_of(stream: str, digest: str) -> Reply:
    """A stream's whole text; one that ends with an error has that one's code, and status 502."""
    events: list[dict[str, Any]] = [
        json.loads(line.removeprefix("data: "))
        for line in stream.splitlines()
        if line.startswith("data: ") and line != "data: [DONE]"
    ]
    errors = [event["error"] for event in events if "error" in event]
    if errors:
        return Reply(502, str(errors[0].get("code")), digest)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return Reply(200, "".join(delta.get("content") or "" for delta in deltas), digest)
