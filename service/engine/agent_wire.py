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
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

import orjson

from service.errors import BadGateway

PROTOCOL: Final = 2
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

QueueName: TypeAlias = Literal["model", "tokenizer"]
"""Which of an engine's queues: that of its places, or that of its tokenizer."""
Message: TypeAlias = list[Any]


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
