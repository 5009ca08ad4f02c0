"""Frames between gateway and embedder."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.errors import BadGateway
from service.knowledge.segment import Segment
from service.knowledge.text import PassageText
from service.knowledge.wire import batch_of, pack, pack_batch, unpack
from tests.unit.service.knowledge.index.segments import segment


async def read(data: bytes) -> tuple[bytes, list[bytes]]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await unpack(reader.readexactly)


async def test_a_batch_arrives_as_it_was_sent() -> None:
    sent = segment(["boots are returned", "parcels leave on Tuesdays"])
    # a text may look like the header's own end
    example = PassageText(1, "", "y", turns=[{"role": "user", "content": "y"}, {"role": "assistant", "content": "z"}])
    passages = [PassageText(0, "A › B", 'x "sizes":[9]', 3, {"page": 2.5, "draft": True}), example]
    got, texts, total = batch_of(*await read(pack_batch(sent, passages, 7)))
    assert texts == passages
    assert total == 7
    for name in ("vectors", "offsets", "terms", "counts"):
        assert np.array_equal(getattr(got, name), getattr(sent, name))


async def test_half_a_frame_is_cut_off() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        await read(pack({"end": True}, [b"12345"])[:-1])


@pytest.mark.parametrize("header", [b"{}", b'{"sizes":[-1]}', b'{"sizes":"many"}', b'{"sizes":[99999999999]}'])
async def test_what_is_no_frame_is_refused(header: bytes) -> None:
    with pytest.raises(BadGateway):
        await read(len(header).to_bytes(4, "big") + header)


async def test_a_header_of_gigabytes_is_not_waited_for() -> None:
    with pytest.raises(BadGateway):
        await read((0xFFFFFFFF).to_bytes(4, "big"))


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    vectors, offsets, terms, counts = segment(["one boot", "two boots"]).dump()
    with pytest.raises(ValueError, match="inconsistent array lengths"):
        Segment.load((vectors, offsets, terms[:-8], counts), 2)
    with pytest.raises(ValueError, match="inconsistent array lengths"):
        Segment.load((vectors, offsets, terms, counts), 3)
