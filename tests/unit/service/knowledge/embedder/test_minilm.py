"""The packaged model in its process: what means the same is found, and questions go before documents."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import psutil
import pytest

from service.config import Settings
from service.errors import BadRequest
from service.knowledge.embedder.model import INDEXING_NICE, INPUTS_NICE, LocalModel, ModelError
from service.knowledge.types import Chunking
from tests.unit.service.knowledge.index.local_stores import PROJECT, LocalStores, SharedEmbedder

SHOP = """# Returns

Unworn footwear may be sent back within 45 days for the full price.

# Shipping

Parcels leave the warehouse on Tuesdays and Fridays.

# Care

Wipe salt off with a damp cloth and let leather dry away from heat.
"""

ORDERS = """order,item,carrier,arrives
TW-2041,oilskin jacket,Blue Heron Freight,Thursday
TW-2042,brass lantern,Grey Seal Couriers,Monday
"""


def deadline(seconds: float = 240) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.mark.slow
async def test_a_question_finds_what_means_the_same(tmp_path: Path, minilm: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, minilm).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "shop.md", SHOP)
        best = await local_stores.search(store, "Can I give my new shoes back and get a refund?", k=1)
        assert best[0].text.startswith("Returns\n")
        best = await local_stores.search(store, "How do I clean my boots?", k=1)
        assert best[0].text.startswith("Care\n")
        unrelated = await local_stores.search(store, "Who won the chess world championship?", threshold=None)
        assert unrelated[0].score < best[0].score / 2, "a score means something by itself"


@pytest.mark.slow
async def test_the_default_minimum_score_tells_a_question_from_one_about_anything_else(
    tmp_path: Path, minilm: SharedEmbedder
) -> None:
    least = Settings.model_fields["grounding_min_score"].default
    async with LocalStores(tmp_path, minilm).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "shop.md", SHOP)
        await local_stores.add(store, "orders.csv", ORDERS)
        for question in ("Where is TW-2041?", "What is the way to look after leather?", "When do you send parcels?"):
            assert await local_stores.search(store, question, k=4, threshold=least), question
        for question in ("Who won the World Cup?", "What is the capital of Portugal?", "How many planets are there?"):
            assert await local_stores.search(store, question, k=4, threshold=least) == [], question


async def test_vectors_have_length_one_and_are_the_models(minilm: SharedEmbedder) -> None:
    one, same = [await minilm.question(text, deadline()) for text in ("boots", "boots")]
    assert one.shape == (384,)
    assert abs(float(np.linalg.norm(one)) - 1) < 1e-5
    assert np.array_equal(one, same)


async def test_a_passage_longer_than_the_models_window_counts_whole(tmp_path: Path, minilm: SharedEmbedder) -> None:
    page = tmp_path / "long.txt"
    page.write_text("The ship sails at dawn. " * 60 + "Quarterly interest rates rose. " * 60)
    (batch,) = [one async for one in minilm.passages(page, "long.txt", Chunking(4000, 0))]
    assert batch.total == 1
    vector = batch.segment.vectors[0]
    for text in ("When does the vessel depart?", "What happened to interest rates?"):
        assert float(vector @ await minilm.question(text, deadline())) > 0.2


async def test_questions_do_not_wait_for_documents(tmp_path: Path, minilm: SharedEmbedder) -> None:
    await minilm.question("is it there?", deadline())
    page = tmp_path / "many.csv"
    page.write_text("n\n" + "".join(f"Row {number} says that boots and parcels are late.\n" for number in range(2000)))
    frames = minilm.passages(page, "many.csv", Chunking(200, 0))
    first = await anext(frames)
    assert first.total == 2000
    for number in range(10):
        await minilm.question(f"question {number}", deadline())
    assert minilm.pid is not None
    nice = set()
    for thread in psutil.Process(minilm.pid).threads():
        with suppress(ProcessLookupError):  # it may have ended since
            nice.add(os.getpriority(os.PRIO_PROCESS, thread.id))
    assert INDEXING_NICE in nice
    assert os.getpriority(os.PRIO_PROCESS, 0) in nice, "the thread of the questions gives way to nobody"
    again = await asyncio.wait_for(anext(frames), 240)
    assert again.total == 2000, "the document was not done meanwhile"
    await frames.aclose()  # type: ignore[attr-defined]
    # whoever goes away in the middle holds nobody up
    page.write_text("n\nlast\n")
    assert [one.total async for one in minilm.passages(page, "last.csv", Chunking(200, 0))] == [1]


OPTIONS: dict[str, Any] = {"single": False, "model": "m", "base64": False, "dimensions": None}
WINDOW = 256


async def test_a_callers_vectors_are_those_by_which_passages_are_found(tmp_path: Path, minilm: SharedEmbedder) -> None:
    texts = ["boots", "Wipe salt off with a damp cloth.", " ", "boots"]
    answer, tokens = await minilm.inputs(texts, **OPTIONS)
    listing = orjson.loads(answer)
    assert [row["index"] for row in listing["data"]] == [0, 1, 2, 3], "longer texts are embedded first, not returned so"
    for text, row in zip(texts, listing["data"], strict=True):
        vector = np.array(row["embedding"], dtype=np.float32)
        assert vector.shape == (384,)
        assert float(vector @ await minilm.question(text, deadline())) == pytest.approx(1, abs=1e-5)
    # [CLS] boots [SEP] · [CLS] wipe salt off with a damp cloth . [SEP] · [CLS] [SEP] · [CLS] boots [SEP]
    assert tokens == 3 + 10 + 2 + 3
    assert listing["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    packed = orjson.loads((await minilm.inputs(texts, **{**OPTIONS, "base64": True}))[0])
    for row, as_base64 in zip(listing["data"], packed["data"], strict=True):
        assert np.frombuffer(base64.b64decode(as_base64["embedding"]), "<f4") == pytest.approx(
            row["embedding"], abs=1e-6
        )


async def test_a_text_that_fills_the_window_passes_and_a_token_more_does_not(minilm: SharedEmbedder) -> None:
    full = "salt " * (WINDOW - 2)
    assert (await minilm.inputs([full], **OPTIONS))[1] == WINDOW
    for texts, single, param, found in (
        (["a", full + "salt"], False, "input.1", "has 257 tokens"),
        ([full + "salt"], True, "input", "has 257 tokens"),
        (["a", "b", "x" * 200_000], False, "input.2", "has 200000 characters"),
    ):
        with pytest.raises(BadRequest, match=f"`{param}` {found}; the model takes at most 256") as refused:
            await minilm.inputs(texts, **{**OPTIONS, "single": single})
        assert (refused.value.param, refused.value.code) == (param, "context_length_exceeded")
    # the bound of all together, before any of them is embedded
    with pytest.raises(BadRequest, match=r"`input` has 3\d{5} tokens in its first 1216 of 2048 texts") as too_many:
        await minilm.inputs([full] * 2048, **OPTIONS)
    assert (too_many.value.param, too_many.value.code) == ("input", "invalid_value")


async def test_dimensions_are_the_models_own(minilm: SharedEmbedder) -> None:
    assert (await minilm.inputs(["a"], **{**OPTIONS, "dimensions": 384}))[1] == 3
    with pytest.raises(BadRequest, match="`dimensions` is 64; the model's vectors have 384") as refused:
        await minilm.inputs(["a"], **{**OPTIONS, "dimensions": 64})
    assert (refused.value.param, refused.value.code) == ("dimensions", "unsupported_value")


async def test_questions_go_before_callers_texts_and_callers_take_turns(minilm: SharedEmbedder) -> None:
    long = ["Boots and parcels are late, and the lighthouse keeper writes about it at length. " * 12] * 256
    async with asyncio.TaskGroup() as group:
        flood = group.create_task(minilm.inputs(long, **OPTIONS))
        await asyncio.sleep(0)
        for number in range(5):
            await minilm.question(f"question {number}", deadline())
        small = await minilm.inputs(["a short text of another caller"], **OPTIONS)
        assert small[1] > 0
        assert not flood.done(), "neither has waited for the 256 texts"
        assert minilm.pid is not None
        nice = set()
        for thread in psutil.Process(minilm.pid).threads():
            with suppress(ProcessLookupError):  # it may have ended since
                nice.add(os.getpriority(os.PRIO_PROCESS, thread.id))
        assert INPUTS_NICE in nice
        flood.cancel()  # whoever leaves in the middle holds nobody up
    assert (await minilm.inputs(["a"], **OPTIONS))[1] == 3


def test_a_model_of_pictures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pictures:
        modalities = ("text", "image")

        def __init__(self, *_: object, **__: object) -> None:
            pass

    # the packages themselves take seconds to import
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Pictures))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=lambda threads: None))
    with pytest.raises(ModelError, match="embeds more than text"):
        LocalModel("clip")


def test_the_gateway_imports_no_torch() -> None:
    heavy = ("torch", "transformers", "sentence_transformers", "tokenizers", "pypdf", "selectolax")
    check = f"import sys, service.app, service.knowledge.service; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=240)
    assert found.stdout.strip() == "[]"


async def test_a_project_is_the_callers(tmp_path: Path, minilm: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, minilm).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "shop.md", SHOP)
        assert await local_stores.search(store, "refund", project="another") == []
        assert await local_stores.stores.get_store(PROJECT, store) is not None
