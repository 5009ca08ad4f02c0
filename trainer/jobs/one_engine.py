"""All answers of a verdict come from one configuration of the engine.

A judging outlives a restart of the engine. Where that comes back with another template, dtype or version, what the
former one had answered says nothing about what the verdict will be written on: it is asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from trainer.errors import EngineMoved
from trainer.evaluate.arms import Frozen
from trainer.evaluations.spec import JUDGEMENTS, SUITE_ANSWERS
from trainer.jobs import spec
from trainer.jobs.folder import Folder

T = TypeVar("T")
ENGINE: Final = "engine.json"
BOOKS: Final = (spec.ANSWERS, spec.SCORES, SUITE_ANSWERS, JUDGEMENTS)
MOST_TIMES: Final = 3


class Asked(Frozen):
    """The fingerprint of the base as it was served to whoever answered."""

    fingerprint: str


def of_one_engine(
    folder: Folder, fingerprint: Callable[[], str], ask: Callable[[], T], *, forget: Callable[[], None]
) -> T:
    """Ask; and ask again where the engine was another one before, or has become another one meanwhile.

    Args:
        folder: With the books of what was answered.
        fingerprint: Gives the base's, as it is served now.
        ask: Goes on from those books.
        forget: Called where they are thrown away, for what else was made of them.

    Raises:
        EngineMoved: It was changed each time.
    """
    now = fingerprint()
    for _ in range(MOST_TIMES):
        known = folder.read(ENGINE, Asked)
        if known is not None and known.fingerprint != now:
            folder.say(
                "the engine serves the base in another way than when this began (its template, dtype or version): what "
                "it had answered is asked again",
                level="warn",
            )
            for name in BOOKS:
                folder.path(name).unlink(missing_ok=True)
            forget()
        folder.write(ENGINE, Asked(fingerprint=now))
        result = ask()
        before, now = now, fingerprint()
        if now == before:
            return result
    raise EngineMoved(f"the engine was changed {MOST_TIMES} times while it was asked")
