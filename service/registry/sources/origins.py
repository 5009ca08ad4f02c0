"""How the files of a source are asked for: of a hub, of a bucket, of a web server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, Protocol

from yarl import URL

from adapters.errors import SourceInvalid
from adapters.sources import BUCKET, HUB, Source, parse_prefix
from service.errors import SettingsError, SourceDamaged, SourceFailed
from service.registry.sources.http import Outgoing, SourceClient

if TYPE_CHECKING:
    from service.config import Settings

S3_PACKAGE: Final = "obstore"
SIGNED_FOR: Final = timedelta(minutes=15)
"""How long a signed address of a bucket is valid; each attempt signs a new one."""
SIGN_S: Final = 15.0
"""Longest wait for the object store's credentials, which may come from the cloud's metadata service, s."""
AWS: Final = (".amazonaws.com", ".amazonaws.com.cn")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_ETAG: Final = re.compile(r'(?:W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?', re.ASCII)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file's digest must be: `sha256` of its bytes, or `git`, its SHA-1 as a blob of Git; in hex."""

    kind: Literal["sha256", "git"]
    digest: str

    def mismatch(self, file: str) -> SourceDamaged:
        """The error of a file that has another digest."""
        name = "SHA-256" if self.kind == "sha256" else "Git hash"
        return SourceDamaged(
            f"{file} came with another content than its {name} at the source says; nothing of it is kept. Push again.",
            param="source.url",
        )


class Origin(Protocol):
    """A source's files."""

    @property
    def address(self) -> Source:
        """What is fetched, pinned to a commit once that is known."""

    async def outgoing(self, file: str) -> Outgoing:
        """The request for a file. Raises SourceFailed."""

    def expected(self, answer: Mapping[str, str]) -> Expected | None:
        """The digest that the answer's headers (names in lower case) promise; None if they promise none.

        Raises SourceFailed.
        """


class Redirects:
    """Where a redirect may lead: to other folders of the operator's list, and to the listed hosts, over TLS."""

    def __init__(self, prefixes: Sequence[Source], hosts: Sequence[str]) -> None:
        self._prefixes = tuple(prefixes)
        self._hosts = tuple(host.lower() for host in hosts)

    def may_follow(self, _url: URL, target: URL) -> bool:
        """Whether the operator's settings cover the target."""
        host = (target.host or "").lower()
        if target.scheme == "https" and any(fnmatchcase(host, pattern) for pattern in self._hosts):
            return True
        try:
            return parse_prefix(f"{target.origin()}{target.raw_path}").is_under(self._prefixes)
        except SourceInvalid:
            return False


class HubOrigin:
    """A repository of a hub: `GET /ORG/REPO/resolve/REVISION/FILE`, as `huggingface_hub` asks.

    The first answer says which commit the revision is; everything after it is asked of that commit. Every answer has
    the file's digest: SHA-256 of what Git LFS or Xet store, else the hash of Git's blob.
    """

    def __init__(self, source: Source, redirects: Redirects, hub_url: str, token: str | None) -> None:
        self._source = source
        self._redirects = redirects
        self._hub = URL(hub_url)
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._is_pinned = _COMMIT.fullmatch(source.revision or "") is not None

    @property
    def address(self) -> Source:
        return self._source

    async def outgoing(self, file: str) -> Outgoing:
        revision = self._source.revision or "main"
        path = "/".join((*self._source.folder, file))
        # a slash in a revision (`refs/pr/3`) is quoted, as huggingface_hub does
        quoted = revision.replace("/", "%2F")
        url = URL(f"{self._hub}/{self._source.repository}/resolve/{quoted}/{path}", encoded=True)
        return Outgoing(url, self._headers, self._may_follow)

    def _may_follow(self, url: URL, target: URL) -> bool:
        """Inside of the hub only within the repository: a renamed one leads to a name that is perhaps on no list."""
        if target.origin() != self._hub.origin():
            return self._redirects.may_follow(url, target)
        repository, base = self._source.repository, self._hub.path.rstrip("/")
        within = (f"{base}/{repository}/resolve/", f"{base}/api/resolve-cache/models/{repository}/")
        return target.path.startswith(within) and ".." not in target.path

    def expected(self, answer: Mapping[str, str]) -> Expected:
        commit = answer.get("x-repo-commit", "")
        if _COMMIT.fullmatch(commit) is None:
            raise SourceFailed(f"{self._hub.host} does not answer as a hub: no x-repo-commit", param="source.url")
        if self._is_pinned and commit != self._source.revision:
            raise SourceFailed(f"{self._hub.host} answered with another commit than was asked for", param="source.url")
        self._source, self._is_pinned = self._source.at(commit), True
        tag = _ETAG.fullmatch(answer.get("x-linked-etag") or answer.get("etag", ""))
        if tag is None:
            raise SourceFailed(f"{self._hub.host} states no digest of the file", param="source.url")
        return Expected("sha256" if len(tag[1]) == 64 else "git", tag[1])


class WebOrigin:
    """A folder of a web server."""

    def __init__(self, source: Source, redirects: Redirects) -> None:
        self.address = source
        self._redirects = redirects

    async def outgoing(self, file: str) -> Outgoing:
        """The request for a file."""
        return Outgoing(URL(f"{self.address}/{file}", encoded=True), {}, self._redirects.may_follow)

    def expected(self, _answer: Mapping[str, str]) -> None:
        """A web server states no digest."""


class BucketOrigin:
    """A folder of an S3 bucket: obstore signs the address (SigV4), with the credentials of the gateway's environment.

    The signed address is fetched by the client of all sources, so that it obeys the same rules.
    """

    def __init__(self, source: Source, client: SourceClient) -> None:
        self.address = source
        self._client = client

    async def outgoing(self, file: str) -> Outgoing:
        """The request for a file. Raises SourceFailed."""
        from obstore import sign_async  # an extra
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        key = "/".join((*self.address.path, file))
        try:
            async with asyncio.timeout(SIGN_S):
                url = URL(await sign_async(S3Store(self.address.host), "GET", key, SIGNED_FOR), encoded=True)
        except (BaseError, TimeoutError) as error:
            raise SourceFailed(
                "the gateway has no credentials for s3:// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION in "
                f"its environment): {type(error).__name__}",
                param="source.url",
            ) from error
        host = url.host or ""
        if not host.endswith(AWS):
            self._client.add_named(host)  # AWS_ENDPOINT_URL, which the operator has set
        return Outgoing(url, {}, lambda _url, _target: False)

    def expected(self, _answer: Mapping[str, str]) -> None:
        """An ETag of S3 is no digest that can be relied on."""


class Origins:
    """Makes the origin of each source.

    Raises:
        SettingsError: ``HATRACK_SOURCES`` names a bucket, and the package that signs its addresses is missing.
    """

    def __init__(self, settings: Settings, client: SourceClient) -> None:
        self._settings = settings
        self._client = client
        self._redirects = Redirects(settings.source_prefixes, settings.source_redirects)
        if any(prefix.scheme == BUCKET for prefix in settings.source_prefixes) and find_spec(S3_PACKAGE) is None:
            raise SettingsError(
                "HATRACK_SOURCES names s3://, which needs the package obstore: pip install 'hatrack[s3]'"
            )

    def of(self, source: Source) -> Origin:
        """The origin of a source that the operator's list covers."""
        if source.scheme == HUB:
            token = self._settings.hub_token
            secret = None if token is None else token.get_secret_value()
            return HubOrigin(source, self._redirects, self._settings.hub_url, secret)
        return BucketOrigin(source, self._client) if source.scheme == BUCKET else WebOrigin(source, self._redirects)


def named_hosts(settings: Settings) -> set[str]:
    """The hosts that the settings name literally, and that may therefore be in a private network."""
    hosts = {URL(str(prefix)).host or "" for prefix in settings.source_prefixes if prefix.scheme in ("https", "http")}
    hosts |= {host for host in settings.source_redirects if "*" not in host}
    if "hub_url" in settings.model_fields_set:
        hosts.add(URL(settings.hub_url).host or "")
    return hosts - {""}
