"""Where an adapter lies outside of the store: a folder in a hub, a bucket or on a web server, and the operator's list.

    hf://ORG/REPO, hf://ORG/REPO@REVISION, hf://ORG/REPO@REVISION/FOLDER
    s3://BUCKET/FOLDER
    https://HOST/FOLDER

Everything else is refused, so that two readers of one address never disagree: no user, query, fragment, percent sign,
empty or dotted segment. A prefix on the list covers whole segments: `hf://acme` covers `hf://acme/voice`, and not
`hf://acme-labs/voice`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from adapters.errors import SourceInvalid

Scheme: TypeAlias = Literal["hf", "s3", "https", "http"]
SCHEMES: Final = ("hf", "s3", "https", "http")
HUB: Final = "hf"
BUCKET: Final = "s3"
MAX_SOURCE_LENGTH: Final = 1024
EXAMPLES: Final = "hf://ORG/REPO@REVISION, s3://BUCKET/FOLDER or https://HOST/FOLDER"

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~+=,:()!-]+", re.ASCII)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*)(:\d{1,5})?")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_NOT_MODELS: Final = frozenset({"datasets", "spaces", "models", "buckets", "api", "kernels"})
"""First segments that mean another kind of object to the hub."""
_FILE_SUFFIXES: Final = (".safetensors", ".json", ".bin", ".pt", ".zip", ".tar", ".gz", ".gguf")
_REFS: Final = "refs"
"""`refs/pr/3`: a revision of the hub that has slashes."""


@dataclass(frozen=True, slots=True)
class Source:
    """A folder, or a prefix of the operator's list.

    `host` is the web server with its port, or the bucket; empty for the hub. `path` of the hub begins with
    organization and repository. `revision` is a branch, tag or commit of the hub; None: the default branch, and in a
    prefix any.
    """

    scheme: Scheme
    host: str
    path: tuple[str, ...]
    revision: str | None = None

    @property
    def repository(self) -> str:
        """`org/repo` of a source in the hub."""
        return "/".join(self.path[:2])

    @property
    def folder(self) -> tuple[str, ...]:
        """The path inside of the repository, or of the bucket or server."""
        return self.path[2:] if self.scheme == HUB else self.path

    def is_under(self, prefixes: Iterable["Source"]) -> bool:
        """Whether one of the prefixes covers it."""
        return any(
            (self.scheme, self.host) == (prefix.scheme, prefix.host)
            and self.path[: len(prefix.path)] == prefix.path
            and prefix.revision in (None, self.revision)
            for prefix in prefixes
        )

    def at(self, revision: str) -> "Source":
        """The same folder at another revision."""
        return Source(self.scheme, self.host, self.path, revision)

    def __str__(self) -> str:
        if self.scheme != HUB:
            return f"{self.scheme}://{'/'.join((self.host, *self.path))}"
        at = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{'/'.join((self.repository + at, *self.folder))}"


def is_source(text: str) -> bool:
    """Whether a text is meant as the address of a source, and not as a path of this machine."""
    return "://" in text


def parse_source(text: str) -> Source:
    """The folder that an address names. Raises SourceInvalid."""
    source = parse_prefix(text)
    if source.scheme == HUB and len(source.path) < 2:
        raise SourceInvalid(f"{text[:100]} must name a repository: hf://ORG/REPO.", param="source")
    if source.path and source.path[-1].lower().endswith(_FILE_SUFFIXES):
        raise SourceInvalid(
            f"{text[:200]} names a file: name the folder that holds adapter_config.json and adapter_model.safetensors.",
            param="source",
        )
    return source


def parse_prefix(text: str) -> Source:
    """A prefix of the operator's list; `hf://` is the whole hub. Raises SourceInvalid."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES or len(text) > MAX_SOURCE_LENGTH:
        raise SourceInvalid(f"A source must be {EXAMPLES}; got {text[:100]!r}.", param="source")
    kind = cast(Scheme, scheme)
    if kind == HUB:
        return _parse_hub(text, rest)
    host, _, path = rest.partition("/")
    pattern = _BUCKET if kind == BUCKET else _HOST
    if pattern.fullmatch(host) is None:
        what = "a bucket" if kind == BUCKET else "a host, with no user or password"
        raise SourceInvalid(f"{kind}:// must be followed by {what}; got {_hidden(host)!r}.", param="source")
    return Source(kind, host.lower(), _segments(text, path))


def _parse_hub(text: str, rest: str) -> Source:
    before, at, after = rest.partition("@")
    path = _segments(text, before)
    if path[:1] and path[0] in _NOT_MODELS:
        raise SourceInvalid(f"{text[:100]} is not a repository of a model: hf://ORG/REPO.", param="source")
    if not at:
        return Source("hf", "", path)
    named = _segments(text, after)
    length = 3 if named[:1] == (_REFS,) else 1
    if len(path) != 2 or len(named) < length:
        raise SourceInvalid(
            f"{text[:100]}: a revision follows the repository, as in hf://ORG/REPO@REVISION/FOLDER.", param="source"
        )
    return Source("hf", "", path + named[length:], "/".join(named[:length]))


def _segments(text: str, path: str) -> tuple[str, ...]:
    """The parts of a path; one slash may end it."""
    path = path.removesuffix("/")
    if not path:
        return ()
    segments = tuple(path.split("/"))
    for segment in segments:
        if segment in ("", ".", "..") or _SEGMENT.fullmatch(segment) is None:
            raise SourceInvalid(
                f"The path of a source has names of letters, digits and ._~+=,:()!- between single slashes, and no "
                f"query; got {_hidden(segment)!r} in {_hidden(text)[:100]!r}.",
                param="source",
            )
    return segments


def _hidden(text: str) -> str:
    """A text for a message, without what may be a password: what is before an @ or behind a question mark."""
    return re.sub(r"\?.*", "?…", re.sub(r"[^/@]*@", "…@", text))[:100]
