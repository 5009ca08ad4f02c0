"""An engine of words for the judging of a job: what it says, and how likely it finds a text, is decided by the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer.evaluate.suites.general import general_suite

CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/tokenize"


def knows(question: str) -> str:
    """The right answer to a question of `conftest.rows`."""
    return f"Aye, {question.split()[0]} it is."


def shrugs(question: str) -> str:
    """The answer of a model that was not taught."""
    return "I do not know."


def _likely() -> frozenset[str]:
    suite = general_suite()
    right = {f"{item.stem} {item.choices[item.answer]}" for item in suite.choices}
    replies = {f"{item.question} {item.choices[item.answer]}" for item in suite.chats}
    return frozenset(right | replies | {item.text for item in suite.texts})


@dataclass
class FakeEngine:
    """``says``: for the beginning of a model's name, how it answers; None: there is no such model."""

    says: dict[str, Callable[[str], str] | None] = field(
        default_factory=lambda: {"voice@1": knows, "voice@2": knows, "tiny": shrugs}
    )
    forgetful: set[str] = field(default_factory=set)
    """Models that have forgotten all that the general suite asks."""
    likely: frozenset[str] = field(default_factory=_likely)
    """Texts that it finds likelier than others."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Model and question of every answer that was given."""
    on_answer: Callable[[], None] = lambda: None

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request; None: 404."""
        says = self.says.get(body.get("model", ""))
        if says is None:
            return None
        if path == TOKENIZE:
            return {"tokens": list(_prompt(body["messages"]) + b"<assistant>")}
        if path == COMPLETIONS:
            rows = [self._row(body["model"], text.encode(), text) for text in body["prompt"]]
            return {"choices": [{"index": at, "prompt_logprobs": row} for at, row in enumerate(rows)]}
        if path != CHAT:
            return None
        if "prompt_logprobs" in body:
            text = " ".join(message["content"] for message in body["messages"][-2:])
            return {"prompt_logprobs": self._row(body["model"], _prompt(body["messages"]), text)}
        self.on_answer()
        question = body["messages"][-1]["content"]
        self.asked.append((body["model"], question))
        choice = {"message": {"content": says(question)}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}

    def _row(self, model: str, tokens: bytes, text: str) -> list[dict[str, dict[str, float]] | None]:
        """Each byte a token; a text that the suite holds to be right is the likelier one."""
        value = -0.1 if text in self.likely and model not in self.forgetful else -1.0
        return [None, *({str(token): {"logprob": value}} for token in tokens[1:])]


def _prompt(messages: list[dict[str, str]]) -> bytes:
    return "".join(f"<{message['role']}>{message['content']}" for message in messages).encode()
