"""Asks a teacher: resumable, with bounded concurrency, and no faster than the teacher allows.

Every reply is appended to a journal before the next prompt is asked, so a run that was killed goes on where it was, and
asks nothing twice but what was in flight. The journal may hold replies of several teachers; each has its own keys.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from adapters.labelling.prompts import Prompt

CONCURRENCY: Final = 8
MAX_REFUSED_AT_FIRST: Final = 10
"""Refusals of one code, and nothing else, after which the labelling ends."""
MAX_TOKENS: Final = 512
PATIENCE_S: Final = 900.0
"""How long a teacher may be busy without answering anything, seconds."""
MIN_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 60.0
FIRST_PAUSE_S: Final = 1.0
LENGTH: Final = "length"
"""The `finish_reason` of an answer that `max_tokens` cut."""


class TeacherBusy(Exception):
    """The teacher asks to come back later. ``retry_after_s``: when, if it says so."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class PromptRefused(Exception):
    """The teacher refuses this prompt (a content filter, a length limit), and may answer others."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class TeacherRefusesAll(Exception):
    """The teacher has refused every prompt so far, for the same reason: the prompts are not what is at fault."""

    def __init__(self, refused: PromptRefused) -> None:
        super().__init__(f"{refused.code}: {refused.message}")
        self.message = str(self)


class JournalInUse(Exception):
    """Another process labels into the same files."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who is asked, and how. ``name``: of a model of the gateway, or of an outside endpoint (``outside``)."""

    name: str
    outside: bool = False
    system: str | None = None
    """A system prompt for the teacher alone: it does not go into the training file."""
    max_tokens: int = MAX_TOKENS
    temperature: float | None = None
    """None: the model's own, or what the version's settings say."""

    def key(self, prompt: Prompt) -> str:
        """Names the reply to a prompt in the journal; another teacher or other settings have other replies."""
        asked = [self.name, self.outside, self.system, self.temperature, prompt.digest]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]

    def messages(self, prompt: Prompt) -> list[Mapping[str, Any]]:
        """The messages to send: a prompt's own system message takes precedence over ``system``."""
        if self.system is None or prompt.messages[0]["role"] == "system":
            return list(prompt.messages)
        return [{"role": "system", "content": self.system}, *prompt.messages]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the teacher said to one prompt.

    Attributes:
        text: The answer; empty if the prompt was refused.
        finish_reason: As in a chat completion; None if the prompt was refused.
        refusal: Why the prompt was refused, or the answer's own `refusal`; None otherwise.
        prompt_tokens, completion_tokens: None if the endpoint did not say.
        served_by: The version or model that answered, if that is known.
        seconds: Until the reply was complete.
        max_tokens: The longest answer that was allowed.
    """

    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    served_by: str | None = None
    seconds: float = 0.0
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SpentTokens:
    """The tokens of several replies. ``unmetered``: replies of which the endpoint did not say how many they took."""

    prompt: int = 0
    completion: int = 0
    unmetered: int = 0

    def __add__(self, other: SpentTokens) -> SpentTokens:
        return SpentTokens(
            self.prompt + other.prompt, self.completion + other.completion, self.unmetered + other.unmetered
        )

    @classmethod
    def of(cls, reply: Reply) -> Self:
        """What one reply took."""
        unmetered = reply.prompt_tokens is None or reply.completion_tokens is None
        return cls(reply.prompt_tokens or 0, reply.completion_tokens or 0, int(unmetered))


class Ask(Protocol):
    """Asks the teacher once."""

    async def __call__(self, teacher: Teacher, prompt: Prompt) -> Reply:
        """The reply to ``prompt``.

        Raises:
            TeacherBusy, PromptRefused: See there. Any other exception ends the labelling.
        """
        ...


OnProgress = Callable[[int, int], None]
"""Called with the number of replies so far and of prompts; may raise to stop."""


class Journal:
    """The replies so far, in a JSONL file; a context manager, for one process at a time.

    A last line that a crash left incomplete is removed; other lines that are no replies are skipped.

    Attributes:
        replies: The last reply of each key.
        spent: What all replies of each key took, of which only the last is used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self.replies: dict[str, Reply] = {}
        self.spent: dict[str, SpentTokens] = {}

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise JournalInUse(f"another process writes to {self._path}; wait until it has ended") from error
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._file, len(whole))
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                key = str(row.pop("key"))
                self._keep(key, Reply(**row))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, key: str, reply: Reply) -> None:
        """Append a reply, which then survives the end of this process. A later reply of the same key replaces it."""
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False).encode() + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        self._keep(key, reply)

    def _keep(self, key: str, reply: Reply) -> None:
        self.spent[key] = self.spent.get(key, SpentTokens()) + SpentTokens.of(reply)
        self.replies[key] = reply

    def reply(self, teacher: Teacher, prompt: Prompt) -> Reply | None:
        """The teacher's reply to a prompt; None if it is to be asked.

        An answer that was cut is asked again if longer ones are allowed now.
        """
        reply = self.replies.get(teacher.key(prompt))
        if reply is not None and reply.finish_reason == LENGTH and reply.max_tokens < teacher.max_tokens:
            return None
        return reply


class _Pace:
    """Holds everybody back while the teacher is busy.

    Raises what the teacher said once it has answered nothing for ``patience_s``.
    """

    def __init__(self, wait: Callable[[float], Awaitable[None]], patience_s: float) -> None:
        self._wait = wait
        self._patience_s = patience_s
        self._busy_since: float | None = None
        self._resume_at = 0.0
        self._refusals = 0

    async def ready(self) -> None:
        """Wait until the teacher may be asked."""
        waited_until = time.monotonic()
        while self._resume_at > waited_until:  # it may move while this waits
            left_s, waited_until = self._resume_at - time.monotonic(), self._resume_at
            await self._wait(max(left_s, 0))

    def answered(self) -> None:
        """The teacher has answered."""
        self._busy_since, self._refusals = None, 0

    def busy(self, error: TeacherBusy) -> None:
        """The teacher is busy: pause for as long as it says, or longer each time."""
        now = time.monotonic()
        self._busy_since = now if self._busy_since is None else self._busy_since
        # a little more for each: those who wait do not come back at the same moment
        backoff = FIRST_PAUSE_S * 2 ** min(self._refusals, 10) * random.uniform(1, 1.25)  # noqa: S311 - no secret
        pause = backoff if error.retry_after_s is None else error.retry_after_s
        pause = min(max(pause, MIN_PAUSE_S), MAX_PAUSE_S)
        if now + pause - self._busy_since > self._patience_s:
            raise error
        if now >= self._resume_at:
            self._refusals += 1  # of those asked at the same time, one counts
        self._resume_at = max(self._resume_at, now + pause)


async def ask_all(
    prompts: Sequence[Prompt],
    teacher: Teacher,
    journal: Journal,
    ask: Ask,
    *,
    concurrency: int = CONCURRENCY,
    on_progress: OnProgress = lambda done, total: None,
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    patience_s: float = PATIENCE_S,
) -> int:
    """Ask the teacher what it has not answered yet; returns how many prompts were asked.

    Args:
        wait: Awaited with seconds instead of sleeping.
        patience_s: How long the teacher may be busy without answering anything, seconds.

    Raises:
        TeacherBusy: The teacher was busy for too long.
        TeacherRefusesAll: It refused the first MAX_REFUSED_AT_FIRST prompts for one reason; they are asked again.
        Exception: What ``ask`` or ``on_progress`` raises. Replies so far stay in the journal.
    """
    missing = [prompt for prompt in prompts if journal.reply(teacher, prompt) is None]
    done, pending, pace = len(prompts) - len(missing), iter(missing), _Pace(wait, patience_s)
    refusals = _Refusals(teacher, journal)
    if any((reply := journal.reply(teacher, prompt)) is not None and reply.refusal is None for prompt in prompts):
        refusals.keep()  # it has answered before it was interrupted
    on_progress(done, len(prompts))

    async def work() -> None:
        nonlocal done
        for prompt in pending:
            try:
                reply = await _reply(teacher, prompt, ask, pace)
            except PromptRefused as refused:
                refusals.add(prompt, refused)
            else:
                journal.add(teacher.key(prompt), reply)
                refusals.keep()
            done += 1
            on_progress(done, len(prompts))

    tasks = [asyncio.ensure_future(work()) for _ in range(min(concurrency, len(missing)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    refusals.keep()
    return len(missing)


class _Refusals:
    """Keeps refusals out of the journal until the teacher has answered something: its settings may be at fault."""

    def __init__(self, teacher: Teacher, journal: Journal) -> None:
        self._teacher = teacher
        self._journal = journal
        self._held: list[tuple[Prompt, PromptRefused]] = []
        self._answers = False

    def add(self, prompt: Prompt, refused: PromptRefused) -> None:
        """A prompt was refused. Raises TeacherRefusesAll."""
        self._held.append((prompt, refused))
        if self._answers:
            self.keep()
        elif len(self._held) >= MAX_REFUSED_AT_FIRST and len({held.code for _, held in self._held}) == 1:
            raise TeacherRefusesAll(refused)

    def keep(self) -> None:
        """The teacher has answered, or has refused all there was: the refusals are about their prompts."""
        self._answers = True
        for prompt, refused in self._held:
            reply = Reply("", refusal=f"{refused.code}: {refused.message}", max_tokens=self._teacher.max_tokens)
            self._journal.add(self._teacher.key(prompt), reply)
        self._held = []


async def _reply(teacher: Teacher, prompt: Prompt, ask: Ask, pace: _Pace) -> Reply:
    while True:
        await pace.ready()
        try:
            reply = await ask(teacher, prompt)
        except TeacherBusy as error:
            pace.busy(error)
        except PromptRefused:
            pace.answered()
            raise
        else:
            pace.answered()
            return reply
