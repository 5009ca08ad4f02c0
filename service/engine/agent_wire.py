"""What an agent and those who use its engine must agree on.

A user of the engine, a gateway or a front, has one *session* with its agent: a WebSocket over which it asks for turns
and hears of the engine. Frames are JSON arrays of messages; a message is an array, its name first. The requests
themselves are plain HTTP beside it, which the agent passes to the engine and streams back; each names the session, and
both kinds are signed (``service.http.signing``). A session that ends takes its turns and its requests with it.

From the user:

    ["proof", signature]                  the first that counts: of the session's id, as the header of a request has it
    ["enter", id, {"queue", "project", "key", "adapter", "tokens", "prompt", "background", "flow", "wait_s"}]
    ["first", id]                         the first token has come
    ["leave", id, tokens or null, answered]
    ["withdraw", id]                      it waits no longer
    ["restart", reason]                   the engine's answers are poisoned
    ["ping"]                              a sign of life

From the agent:

    ["hello", {"protocol", "session", "version", "store_url"}]
    ["state", {"name", "reason", "since", "report"}]    `report`: the engine's plugin's, if it is ready
    ["admitted", id]
    ["refused", id, error]                ``service.http.peer_errors``
    ["clock", share_s, busy_s, open]      ``service.engine.busy``
    ["queue", snapshot]                   ``service.admission.snapshot.QueueSnapshot``
    ["loaded", known, [digest, …], cold_loads, cold_load_s]

Each side sends something at least every SIGN_OF_LIFE_S.

An agent whose address the gateway's settings do not have *announces* itself: every ANNOUNCE_EVERY_S it POSTs an
``Announcement`` to the gateway's ANNOUNCE_PATH, signed for ANNOUNCE_PURPOSE, and is answered with the name of the
engine that it has become, and why that gets no requests (null: it does): ``{"name", "unused"}``. Sessions are opened by
the gateway, as with any agent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.errors import BadGateway

PROTOCOL: Final = 3
"""Raised when any of this changes."""
SESSION_PATH: Final = "/agent/v1/session"
ENGINE_PATH: Final = "/agent/v1/engine"
"""What follows it is the path in the engine."""
SESSION_HEADER: Final = "x-hatrack-session"
ERROR_HEADER: Final = "x-hatrack-error"
"""Marks an answer that is the agent's own, an error, and not the engine's."""
PURPOSE: Final = "agent"
"""What the signing key is derived for."""
SIGN_OF_LIFE_S: Final = 1.0
MAX_FRAME_BYTES: Final = 16 * 2**20

ANNOUNCE_PATH: Final = "/agents/v1/announce"
ANNOUNCE_PURPOSE: Final = "announce"
ANNOUNCE_EVERY_S: Final = 2.0
ANNOUNCE_TIMEOUT_S: Final = 5.0
NO_FREE_ENGINE: Final = "no_free_engine"
"""Code of the refusal of an agent for which there is no place."""
ANNOUNCE_SOON_S: Final = 0.5
"""The same for one that has become an engine, and gets no requests yet."""

QueueName: TypeAlias = Literal["model", "tokenizer"]
"""Which of an engine's queues: that of its places, or that of its tokenizer."""
Message: TypeAlias = list[Any]


class Announcement(BaseModel):
    """What an agent says of itself to its gateway.

    Attributes:
        protocol: PROTOCOL.
        instance: New with each start of the agent.
        name: The entry of the gateway's engines that it is to be; None: any of its base that is free.
        last: What it was called before, which it is again if that is free.
        base: The served name of its base.
        address: Where it listens, as HATRACK_ENGINE_AGENT takes it.
        slots: Of its engine.
        leaving: It has ended; what it was is free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    protocol: int
    instance: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str | None = Field(None, max_length=32)
    last: str | None = Field(None, max_length=32)
    base: str = Field(min_length=1, max_length=256)
    address: str = Field(min_length=1, max_length=512)
    slots: int = Field(ge=1)
    leaving: bool = False


def dump_frame(messages: Iterable[Message]) -> bytes:
    """One frame."""
    return orjson.dumps(list(messages))


def load_frame(frame: bytes | str) -> list[Message]:
    """The messages of a frame. Raises BadGateway if it is none."""
    try:
        messages = orjson.loads(frame)
    except orjson.JSONDecodeError:
        messages = None
    if not isinstance(messages, list) or not all(isinstance(each, list) and each for each in messages):
        raise BadGateway("invalid frame on a session between an agent and a gateway")
    return messages
