"""The grammar of names, versions and aliases, and the only parser of `brand-voice@3` and `brand-voice:canary`.

Datasets have names of the same grammar, and versions (`support@3`), but no aliases.

name      = [a-z0-9][a-z0-9._-]{0,63}      (not 64 hex digits: those read as a digest)
alias     = the same grammar
reference = name | name "@" version | name ":" alias
version   = 1 … 2147483647, in plain decimal without leading zeros
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from adapters.errors import NameInvalid, NameReserved, ReferenceInvalid

DEFAULT_ALIAS: Final = "live"
MAX_NAME_LENGTH: Final = 64
MAX_VERSION: Final = 2**31 - 1
CHECKPOINT_PREFIX: Final = "ckpt-"
"""How the aliases of a job's checkpoints begin."""
JOB_DIGITS: Final = 12
"""Digits of a job's id in the names of its checkpoints."""
FILE_ID_PREFIX: Final = "file-"
"""How the ids of files begin; a dataset's name must not, since a request may name either."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_VERSION: Final = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_FALLBACK_NAME: Final = "adapter"


def is_digest(text: str) -> bool:
    """Whether `text` has the form of a digest: 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def parse_name(
    text: str, *, base_names: Collection[str] = (), embedder_name: str | None = None, noun: str = "adapter"
) -> str:
    """Return `text` if it is a valid name of an adapter, or of what `noun` says in messages.

    Raises NameInvalid; NameReserved for a digest's form, or for the served name of a base or the embedder.
    """
    if _NAME.fullmatch(text) is None:
        raise NameInvalid(
            f"{_shown(text)} is not a valid {noun} name: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit.",
            param="name",
        )
    if is_digest(text):
        raise NameReserved(
            f"{_article(noun)} {noun} name must not be 64 hex digits, which would be ambiguous with a digest.",
            param="name",
        )
    if text in base_names:
        raise NameReserved(f"'{text}' is the base model's name.", param="name")
    if text == embedder_name:
        raise NameReserved(f"'{text}' is the embedding model's name.", param="name")
    return text


def parse_alias(text: str) -> str:
    """Return `text` if it is a valid alias. Raises NameInvalid."""
    if _NAME.fullmatch(text) is None:
        raise NameInvalid(
            f"{_shown(text)} is not a valid alias: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit.",
            param="alias",
        )
    return text


def checkpoint_alias(job_id: str, step: int) -> str:
    """The alias of the version that a job's checkpoint after `step` becomes: known before there is that version.

    >>> checkpoint_alias("ftjob-0f3a9c1b22de77aa01", 60)
    'ckpt-0f3a9c1b22de-step-60'
    """
    return f"{CHECKPOINT_PREFIX}{job_id.rpartition('-')[2][:JOB_DIGITS]}-step-{step}"


def is_checkpoint_alias(alias: str) -> bool:
    """Whether an alias names a checkpoint. Such an alias does not keep its version from being deleted."""
    return alias.startswith(CHECKPOINT_PREFIX)


def parse_version(text: str) -> int:
    """Return the version number in `text`. Raises ReferenceInvalid."""
    if _VERSION.fullmatch(text) is None or int(text) > MAX_VERSION:
        raise ReferenceInvalid(
            f"{_shown(text)} is not a valid version: use a number from 1 to {MAX_VERSION}.", param="version"
        )
    return int(text)


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: a name, and at most one of a version and an alias.

    With neither it means the name's DEFAULT_ALIAS; `label` is the original text.
    """

    name: str
    version: int | None = None
    alias: str | None = None

    @property
    def pointer(self) -> str | None:
        """The alias to resolve: the given one, DEFAULT_ALIAS if none is given, None for a version."""
        if self.version is not None:
            return None
        return self.alias or DEFAULT_ALIAS

    @property
    def label(self) -> str:
        """`name`, `name@version` or `name:alias`: what parse_reference() turns into this again."""
        if self.version is not None:
            return f"{self.name}@{self.version}"
        if self.alias is not None:
            return f"{self.name}:{self.alias}"
        return self.name

    def __str__(self) -> str:
        return self.label


def parse_dataset(text: str) -> Reference:
    """Parse a dataset's `name` or `name@version`.

    Raises NameInvalid or NameReserved for the name, ReferenceInvalid for the version.
    """
    name, at, version = text.partition("@")
    if name.startswith(FILE_ID_PREFIX):
        raise NameReserved(
            f"A dataset name must not begin with '{FILE_ID_PREFIX}', as the ids of files do; got {_shown(name)}.",
            param="name",
        )
    parse_name(name, noun="dataset")
    return Reference(name, version=parse_version(version) if at else None)


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name@version` or `name:alias`.

    Raises NameInvalid or NameReserved for the name, NameInvalid for the alias, ReferenceInvalid for the version.
    """
    at, colon = text.find("@"), text.find(":")
    if at >= 0 and (colon < 0 or at < colon):
        return Reference(parse_name(text[:at]), version=parse_version(text[at + 1 :]))
    if colon >= 0:
        return Reference(parse_name(text[:colon]), alias=parse_alias(text[colon + 1 :]))
    return Reference(parse_name(text))


def suggest_name(text: str) -> str:
    """Make a valid name out of free text (a job's suffix, a directory's name); the same text gives the same name.

    >>> suggest_name("Märchen & Sagen, v2!")
    'marchen-sagen-v2'
    """
    plain = unicodedata.normalize("NFKD", text[:1024]).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._]+", "-", plain).lstrip("._-")[:MAX_NAME_LENGTH].rstrip("._-")
    if not name:
        return _FALLBACK_NAME
    if is_digest(name):
        return f"{_FALLBACK_NAME}-{name[:12]}"
    return name


def _article(noun: str) -> str:
    return "An" if noun[0] in "aeiou" else "A"


def _shown(text: str) -> str:
    """A caller's text for a message: escaped and short."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
