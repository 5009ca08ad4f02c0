"""`hatrack chat`: one answer, and a conversation at a terminal."""

from __future__ import annotations

import json

import pytest

from service.cli.chat import Conversation
from service.client import ClientError, HatrackClient
from tests.unit.service.cli.conftest import Hatrack, at_terminal
from tests.unit.service.wire import KEY, Gateway


def test_chat_answers_once(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    gateway.say("Good ", "\x1b[2Jday")
    result = hatrack("chat", "voice", "Where", "is", "it?", "--system", "Be kind", "--temperature", "0")
    assert (result.exit_code, result.stdout) == (0, "Good [2Jday\n")
    sent = json.loads(gateway.requests[-1][3])
    assert sent["messages"] == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Where is it?"},
    ]
    assert sent["temperature"] == 0
    assert "max_tokens" not in sent
    piped = hatrack("chat", "voice", "--json", stdin="From a pipe\n")
    assert json.loads(piped.stdout) == {"model": "voice", "content": "Good \x1b[2Jday"}
    assert json.loads(gateway.requests[-1][3])["messages"] == [{"role": "user", "content": "From a pipe"}]


def test_chat_errors_leave_with_1(hatrack: Hatrack, gateway: Gateway) -> None:
    assert "[model_not_found]" in hatrack("chat", "nobody", "hi").stderr
    gateway.say("Hel", end=b"")
    cut = hatrack("chat", "tiny-base", "hi")
    assert (cut.exit_code, cut.stdout) == (1, "Hel\n")
    assert "[stream_cut]" in cut.stderr


def test_a_conversation_remembers_until_reset(gateway: Gateway) -> None:
    with HatrackClient(gateway.url, KEY) as client:
        talk = Conversation(client, "tiny-base", "Be kind", {})
        gateway.say("one")
        talk.ask("first", echo=False)
        gateway.say("lost", end=b"")
        with pytest.raises(ClientError, match="incomplete"):
            talk.ask("broken", echo=False)
        gateway.say("two")
        talk.ask("second", echo=False)
        roles = [(m["role"], m["content"]) for m in json.loads(gateway.requests[-1][3])["messages"]]
        assert roles == [("system", "Be kind"), ("user", "first"), ("assistant", "one"), ("user", "second")]
        talk.reset()
        talk.ask("third", echo=False)
    roles = [(m["role"], m["content"]) for m in json.loads(gateway.requests[-1][3])["messages"]]
    assert roles == [("system", "Be kind"), ("user", "third")]


def test_chat_at_a_terminal_is_a_conversation(gateway: Gateway) -> None:
    gateway.say("Good day")
    code, out = at_terminal(gateway, "chat", "tiny-base", typed=b"Hello\n/system Be kind\nAgain\n/exit\n")
    assert code == 0, out
    assert out.count(b"Good day") == 2
    last = json.loads(gateway.requests[-1][3])["messages"]
    assert last == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Again"}]


def test_a_conversation_outlives_an_error(gateway: Gateway) -> None:
    code, out = at_terminal(gateway, "chat", "nobody", typed=b"Hello\nAgain\n/quit\n")
    assert code == 0, out
    assert out.count(b"[model_not_found]") == 2
