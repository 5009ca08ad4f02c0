"""The Python client for what surrounds inference: adapters, training, evaluations, keys. It speaks HTTP only.

    with HatrackClient() as client:
        version = client.adapters.push("brand-voice", "out/brand-voice")
        client.adapters.promote(f"brand-voice@{version['version']}")

Applications that ask a model use the `openai` client.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self, cast

import httpx

from service.client.addresses import on_this_machine, without_v1
from service.client.connection import QUICK, Connection
from service.client.settings import ClientSettings
from service.client.wire import ClientError, json_body, refusal

if TYPE_CHECKING:
    from service.client.access import Audit, Keys, Usage
    from service.client.adapters import Adapters
    from service.client.batches import Batches
    from service.client.chat import Chat, Embeddings, Models
    from service.client.costs import Budgets, Costs
    from service.client.datasets import Datasets
    from service.client.evaluations import Evaluations, Revalidations, Reviews
    from service.client.files import Files, VectorStores
    from service.client.ladders import Ladders
    from service.client.teachers import TeacherClient, Teachers
    from service.client.training import FineTuning
    from service.client.types.gateway import Health, Readiness

_POLL_S: Final = 0.25


class HatrackClient:
    """One gateway, one key, one connection pool; usable as a context manager.

    The calls are grouped by what they are about, as in the `openai` client: `client.adapters.push(…)`,
    `client.fine_tuning.jobs.create(…)`. A group is imported when it is first used.

    Args:
        base_url: The gateway's address, with or without `/v1`. None: `HATRACK_URL`, else the profile that
            `hatrack login` saved, else `OPENAI_BASE_URL` with `OPENAI_API_KEY` unless `HATRACK_KEY` is set, else
            http://127.0.0.1:8000.
        api_key: The key. None: `HATRACK_KEY`, else the profile's where the address is the profile's, else
            `OPENAI_API_KEY` where it is `OPENAI_BASE_URL`, else, for a gateway on this machine, the admin key under
            `HATRACK_HOME`.
        project: The project that an admin's key acts in. None: `HATRACK_PROJECT`, else the profile's with its key, else
            the gateway's `default`.
        transport: Another way to reach the gateway, such as `httpx.ASGITransport`.
        patience_s: Seconds to wait for an answer to a quick call, such as a list. None: 30.
        settings: Where the address, the key and the project come from that are not given. None: the environment.

    Raises:
        ClientError: `url_invalid` or `key_invalid`; `profile_not_found` or `profiles_unreadable`.

    Every method raises ClientError, whose `code` is the gateway's; or CannotConnect where nobody listens, or one of
    `timeout`, `connection_lost`, `not_hatrack`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        project: str | None = None,
        transport: httpx.BaseTransport | None = None,
        patience_s: float | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        settings = settings or ClientSettings()
        self.url: Final = _checked_url(without_v1(base_url if base_url is not None else settings.gateway_url))
        key = api_key if api_key is not None else settings.gateway_key(self.url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ClientError(
                0,
                "key_invalid",
                "The API key must be printable ASCII; check HATRACK_KEY, or run `hatrack login` again.",
            )
        found = settings.project if api_key is not None else settings.gateway_project(self.url)
        self.project: Final = project or found
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._headers |= {"openai-project": self.project} if self.project else {}
        self._trust_env = not on_this_machine(self.url)  # a proxy cannot reach our loopback address
        http = httpx.Client(
            base_url=self.url,
            headers=self._headers,
            timeout=QUICK if patience_s is None else httpx.Timeout(patience_s),
            transport=transport,
            trust_env=self._trust_env,
        )
        self._connection = Connection(self.url, http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    # groups of calls

    @cached_property
    def adapters(self) -> Adapters:
        """Adapters, their versions and aliases."""
        from service.client.adapters import Adapters

        return Adapters(self._connection)

    @cached_property
    def audit(self) -> Audit:
        """The log of changes and refused requests."""
        from service.client.access import Audit

        return Audit(self._connection)

    @cached_property
    def batches(self) -> Batches:
        """Requests in a file, answered in the background."""
        from service.client.batches import Batches

        return Batches(self._connection)

    @cached_property
    def chat(self) -> Chat:
        """Chat completions, as they are generated."""
        from service.client.chat import Chat

        return Chat(self._connection)

    @cached_property
    def budgets(self) -> Budgets:
        """What projects may spend in a month."""
        from service.client.costs import Budgets

        return Budgets(self._connection)

    @cached_property
    def costs(self) -> Costs:
        """Device time and money: of requests and runs, and of a year."""
        from service.client.costs import Costs

        return Costs(self._connection)

    @cached_property
    def datasets(self) -> Datasets:
        """Named, numbered versions of training files."""
        from service.client.datasets import Datasets

        return Datasets(self._connection)

    @cached_property
    def embeddings(self) -> Embeddings:
        """Vectors of texts."""
        from service.client.chat import Embeddings

        return Embeddings(self._connection)

    @cached_property
    def evaluations(self) -> Evaluations:
        """Evaluations and their reports."""
        from service.client.evaluations import Evaluations

        return Evaluations(self._connection)

    @cached_property
    def files(self) -> Files:
        """Uploaded files."""
        from service.client.files import Files

        return Files(self._connection)

    @cached_property
    def fine_tuning(self) -> FineTuning:
        """Fine-tuning jobs, and the check of their data."""
        from service.client.training import FineTuning

        return FineTuning(self._connection)

    @cached_property
    def ladders(self) -> Ladders:
        """Ladders: should one fine-tune at all?"""
        from service.client.ladders import Ladders

        return Ladders(self._connection)

    @cached_property
    def keys(self) -> Keys:
        """API keys."""
        from service.client.access import Keys

        return Keys(self._connection)

    @cached_property
    def models(self) -> Models:
        """The names that a request may send as `model`."""
        from service.client.chat import Models

        return Models(self._connection)

    @cached_property
    def revalidations(self) -> Revalidations:
        """Versions judged again."""
        from service.client.evaluations import Revalidations

        return Revalidations(self._connection)

    @cached_property
    def reviews(self) -> Reviews:
        """Pairs of answers that people choose between."""
        from service.client.evaluations import Reviews

        return Reviews(self._connection)

    @cached_property
    def teachers(self) -> Teachers:
        """Outside endpoints that answer prompts to train on."""
        from service.client.teachers import Teachers

        return Teachers(self._connection)

    def teacher_client(self, connections: int) -> TeacherClient:
        """A client, with connections of its own, that asks teachers for `adapters.labelling`."""
        from service.client.teachers import TeacherClient

        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return TeacherClient(
            httpx.AsyncClient(
                base_url=self.url, headers=self._headers, timeout=QUICK, limits=limits, trust_env=self._trust_env
            )
        )

    @cached_property
    def usage(self) -> Usage:
        """Requests and tokens."""
        from service.client.access import Usage

        return Usage(self._connection)

    @cached_property
    def vector_stores(self) -> VectorStores:
        """Stores that documents are indexed in."""
        from service.client.files import VectorStores

        return VectorStores(self._connection)

    # the gateway's state

    def health(self) -> Health:
        """Whether the gateway process is up; needs no key."""
        return cast("Health", self._connection.request(dict[str, Any], "GET", "/healthz"))

    def ready(self) -> Readiness:
        """The readiness report, whether it says ready (200) or not (503); needs no key."""
        response = self._connection.unchecked("GET", "/readyz")
        report = json_body(response)
        if response.status_code not in (200, 503) or not isinstance(report, dict) or "status" not in report:
            raise refusal(response)
        return cast("Readiness", report)

    def wait_ready(self, timeout_s: float) -> Readiness:
        """Wait until the gateway is ready, or even starts to listen.

        Raises:
            ClientError: `not_ready` after ``timeout_s`` seconds, with the latest reason.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                report = self.ready()
                if report.get("status") == "ready":
                    return report
                reason = json.dumps(report.get("engine") or report.get("status"), ensure_ascii=False)
            except ClientError as error:
                if error.status:
                    raise
                reason = error.message
            if time.monotonic() >= end:
                raise ClientError(503, "not_ready", f"{self.url} was not ready within {timeout_s:g} s: {reason}")
            time.sleep(_POLL_S)

    def metrics(self) -> str:
        """The gateway's `/metrics`, in Prometheus' text format."""
        return self._connection.checked("GET", "/metrics").text


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(0, "url_invalid", f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(0, "url_invalid", f"{url!r} is not a gateway address; use http://HOST:PORT.")
    return url
