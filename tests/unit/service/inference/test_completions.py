"""The stream of chat and text completions: events that differ in their text alone take a shorter way, unseen."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.inference.completions import MAX_TEMPLATE_BYTES, MAX_TEMPLATES, ChatRelay
from service.inference.relay import Renamer
from service.registry.catalog import Target
from tests.unit.service.inference.fakes import DIGESTS, DONE, event, token, usage_event

VOICE = Target("voice", DIGESTS[3], adapter="voice", version=3, digest=DIGESTS[3])
MODEL = b'"model":"' + DIGESTS[3].encode() + b'"'


class Searching(ChatRelay):
    """Searches every event."""

    __slots__ = ()

    def _learn(self, event: bytes) -> None:
        """Learn nothing."""


class CountingRenamer(Renamer):
    """Counts the events that it has searched for the model."""

    __slots__ = ("searched",)

    def __init__(self) -> None:
        super().__init__(VOICE)
        self.searched = 0

    def rename(self, data: bytes) -> bytes:
        self.searched += data.startswith(b"data: ") and data.endswith(b"\n\n")
        return super().rename(data)


def written(text: bytes, kind: str = "content", more: bytes = b"") -> bytes:
    """An event of vLLM's form whose text is not encoded: it may be anything."""
    choice = b'{"text":"%b"' if kind == "text" else b'{"delta":{"' + kind.encode() + b'":"%b"}'
    choices = b'"choices":[' + choice % text + b',"logprobs":null,"finish_reason":null' + more + b"}]"
    return b'data: {"id":"c1",' + MODEL + b"," + choices + b"}\n\n"


MARKERS = [b'"choices":[{', b'"usage":{"prompt_tokens":7}', MODEL, b"\n\n", b"}\n\ndata: {", b'"', b"\\", b'"}', b'",']
HALVES = [b"model", b"choices", b'":[{', b'":"', b"usage", b'":{', b"\n", b"}", b""]
TEXTS = st.one_of(
    st.text(max_size=6).map(lambda text: orjson.dumps(text)[1:-1]),
    st.lists(st.sampled_from([*MARKERS, *HALVES, "ä🙂".encode()]), max_size=3).map(b"".join),
)
EVENTS = st.one_of(
    st.builds(written, TEXTS, st.sampled_from(["content", "text", "reasoning", "role"])),
    st.builds(written, TEXTS, more=st.sampled_from([b"," + MODEL, b',"usage":{"prompt_tokens":3}', b',"n":"a"', b'"'])),
    TEXTS.map(lambda text: text + b"\n\n"),
    st.just(written(b"").replace(b'""', b'"')),  # shorter than what stands around a text
    st.sampled_from([usage_event(), DONE, b": comment\n\n", b'data: {"error":{"message":"m","code":500}}\n\n']),
)


@given(
    events=st.lists(EVENTS, max_size=12),
    cuts=st.one_of(st.none(), st.lists(st.integers(0, 2000), max_size=20)),
    show_usage=st.booleans(),
)
@example(
    events=[written(b"a"), written(b'x"y'), written(b""), written(b"b\n\nc"), written(b"d")],
    cuts=None,
    show_usage=False,
)
@example(events=[written(b"a"), written(b"").replace(b'""', b'"'), written(b"b")], cuts=None, show_usage=False)
@example(
    events=[written(b'%b":"' % text + DIGESTS[3].encode()) for text in (b"a", b"model")], cuts=None, show_usage=False
)
@example(events=[written(b"a"), written(b'","usage":{"prompt_tokens":7},"s":"')], cuts=None, show_usage=False)
@example(
    events=[written(b"a"), written(b"b") + written(b'","usage":{"prompt_tokens":7},"s":"')], cuts=None, show_usage=False
)
@example(events=[written(b"a"), written(b"b") + written(b"c\n\nd") + written(b"e")], cuts=None, show_usage=False)
@example(events=[written(b"a"), written(b"b") + usage_event() + written(b"c")], cuts=None, show_usage=False)
@example(events=[written(b"a", more=b"," + MODEL), written(b"b", more=b"," + MODEL)], cuts=None, show_usage=True)
def test_the_bytes_and_the_usage_are_those_of_a_relay_that_searches_every_event(
    events: list[bytes], cuts: list[int] | None, show_usage: bool
) -> None:
    whole = b"".join(events)
    if cuts is None:
        pieces = events
    else:
        edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
        pieces = [whole[start:end] for start, end in pairwise(edges)]
    short, searching = (each(Renamer(VOICE), show_usage=show_usage) for each in (ChatRelay, Searching))
    for piece in pieces:
        assert short.feed(piece) == searching.feed(piece)
        assert (short.events, short.usage, short.done, short.error) == (
            *(searching.events, searching.usage),
            *(searching.done, searching.error),
        )
    assert short.counted() == searching.counted()


@pytest.mark.parametrize("kind", ["content", "text", "reasoning"])
def test_the_second_event_with_a_text_is_not_searched(kind: str) -> None:
    renamer = CountingRenamer()
    relay = ChatRelay(renamer, show_usage=False)
    texts = [b" the", " grün 🙂".encode(), b"\\n", b"\\u00e9"]
    sent = b"".join(relay.feed(written(text, kind)) for text in texts)
    assert sent == b"".join(written(text, kind) for text in texts).replace(DIGESTS[3].encode(), b"voice")
    assert renamer.searched == 1
    assert relay.events == 4


def test_events_that_arrive_together_are_not_searched_either() -> None:
    renamer = CountingRenamer()
    relay = ChatRelay(renamer, show_usage=False)
    events = [written(text) for text in (b"a", b"b", b"", b"c")]
    sent = relay.feed(events[0]) + relay.feed(b"".join(events[1:]))
    assert sent == b"".join(events).replace(DIGESTS[3].encode(), b"voice")
    assert renamer.searched == 1
    assert relay.events == 4


def test_a_text_with_a_quote_leaves_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[bytes] = []
    learn = ChatRelay._learn

    def learn_counted(relay: ChatRelay, event: bytes) -> None:
        learned.append(event)
        learn(relay, event)

    monkeypatch.setattr(ChatRelay, "_learn", learn_counted)
    relay = ChatRelay(CountingRenamer(), show_usage=False)
    for text in ("a", 'say "b"', "c"):
        assert relay.feed(token(text)) == token(text, "voice")
    assert learned == [token("a")]


def test_reasoning_and_then_text_are_each_learned() -> None:
    renamer = CountingRenamer()
    relay = ChatRelay(renamer, show_usage=False)
    for text, kind in [(b"a", "reasoning"), (b"b", "reasoning"), (b"c", "content"), (b"d", "content")]:
        relay.feed(written(text, kind))
    assert renamer.searched == 2


def test_a_stream_of_unlike_or_large_events_is_learned_a_few_times_at_most() -> None:
    renamer = CountingRenamer()
    relay = ChatRelay(renamer, show_usage=False)
    large = event(model=DIGESTS[3], choices=[{"text": "a", "logprobs": "y" * MAX_TEMPLATE_BYTES}])
    for _ in range(3):
        relay.feed(large)
    assert renamer.searched == 3
    for number in range(3 * MAX_TEMPLATES):
        relay.feed(written(b"a", more=b',"n":%d' % number))
    assert relay._templates == MAX_TEMPLATES
