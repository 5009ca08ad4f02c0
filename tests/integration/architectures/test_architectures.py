"""Each architecture on the real engine, from a data file to a judged version that answers. The bases are random.

A gateway has engines for several of them, which start at the same time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.integration.test_engines import until_all_ready
from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway
from tests.support.runs import wait_for_run
from tests.support.scheduling import normal_priority
from tests.support.templates import DROPS_THINKING, REFUSES_SYSTEM
from tests.support.tiny_models import make_base
from trainer.samples import data_file, heldout_file

EXITED_S = 900.0
ENGINE = {
    "HATRACK_ENGINE_SLOTS": "2",
    "HATRACK_ENGINE_RESIDENT": "4",
    "HATRACK_ENGINE_ARGS": "--enforce-eager",
    "HATRACK_TRAINER_EVALUATE_REPEATS": "1",
    "HATRACK_KNOWLEDGE": "false",
}
SYSTEM_PROMPT = "You are a sailor who keeps a shop."
QUESTION = "Where is my parcel?"
BASES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"template": DROPS_THINKING},
    "mistral": {},
    "gemma3_text": {"template": REFUSES_SYSTEM},
    "phi3": {},
    "granite": {},
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
}
"""Every architecture, two of them with the kind of chat template that its family has."""
GROUPS = (
    ("llama", "qwen2", "qwen3", "mistral"),
    ("gemma3_text", "phi3", "granite"),
    ("mixtral", "qwen2_moe", "qwen3_moe"),
)
"""What one gateway serves: as many engines as a machine of 16 GiB has memory for."""
EACH = pytest.mark.parametrize(
    ("bases", "model_type"),
    [pytest.param(group, model_type, id=model_type) for group in GROUPS for model_type in group],
    indirect=["bases"],
    scope="module",
)
TARGETS = {
    "phi3": {"qkv_proj", "gate_up_proj", "o_proj", "down_proj"},
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen2_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
DENSE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
EXPERTS = {"mixtral": "w1", "qwen3_moe": "up_proj"}


def name_of(model_type: str) -> str:
    """The name of an architecture's engine and base."""
    return f"tiny-{model_type.replace('_', '-')}"


@pytest.fixture(scope="module")
def bases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bases of a group of architectures."""
    root = tmp_path_factory.mktemp("bases")
    return {each: make_base(each, root / name_of(each), **BASES[each]) for each in request.param}


@pytest.fixture(scope="module")
def gateway(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a trainer that serves the tiny bases."""
    home = tmp_path_factory.mktemp("gateway")
    entries = [f'[[engine]]\nname = "{name_of(each)}"\nbase = "{directory}"\n' for each, directory in bases.items()]
    (home / "engines.toml").write_text("".join(entries))
    settings = ENGINE | {"HATRACK_BASE_MODEL": "", "HATRACK_ENGINES": str(home / "engines.toml")}
    started = Gateway(home, next(iter(bases.values())), settings=settings, arguments=("--trainer",))
    with normal_priority():
        try:
            started.start()
            until_all_ready(started)
            yield started
        finally:
            started.stop()


def upload(client: httpx.Client, name: str, lines: list[bytes]) -> str:
    answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, b"".join(lines))})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def examples(path: Path, number: int) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)[:number]


def conversation(number: int) -> bytes:
    turns = [("Do you sell rope?", f"Aye, {number} fathoms of it."), ("And lamps?", f"Lamps, too: shelf {number}.")]
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]
    return json.dumps({"messages": messages}).encode() + b"\n"


@EACH
def test_a_job_trains_proves_and_judges_an_adapter_that_answers_beside_its_base(
    gateway: Gateway, model_type: str
) -> None:
    base = name_of(model_type)
    adapter = f"voice-of-{base}"
    with gateway.http() as client:
        body = {
            "model": base,
            "training_file": upload(client, "a.jsonl", [*examples(data_file("tidewater"), 24), conversation(3)]),
            "validation_file": upload(client, "b.jsonl", examples(heldout_file("tidewater"), 4)),
            "suffix": adapter,
            "seed": 1,
            "hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate": 5e-3},
            "metadata": {"suites": "none", "system_prompt": SYSTEM_PROMPT},
        }
        created = client.post("/v1/fine_tuning/jobs", json=body)
        assert created.status_code == 200, created.text
        job = wait_for_run(client, created.json()["id"])
        events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
        assert job["status"] == "succeeded", (job["error"], [event["message"] for event in events[:5]])
        assert job["fine_tuned_model"] == f"{adapter}@1"
        assert job["metadata"]["hatrack_verdict"] in ("not_enough_evidence", "fail")
        version = client.get(f"/v1/adapters/{adapter}/versions/1").json()
        assert version["state"] == "ready"
        trained = set(version["target_modules"])
        assert trained == TARGETS.get(model_type, DENSE)
        # the engine applies what PEFT trained: the proof holds the one against the other
        assert version["proof"]["reference"] is not None
        report = client.get(f"/v1/fine_tuning/jobs/{job['id']}/report").json()
        split = [finding["lines"] for finding in report["findings"] if finding["code"] == "split_turns"]
        assert split == ([[25]] if model_type == "qwen3" else [])
    # in one batch with its base, each answers as it does alone
    models = (f"{adapter}@1", base)
    alone = {model: gateway.answer_samples(model, QUESTION, max_tokens=6) for model in models}
    answers = gateway.answers([(model, QUESTION) for model in models * 2], max_tokens=6)
    for model, answer in zip(models * 2, answers, strict=True):
        assert answer in alone[model] or gateway.still_answers(alone[model], model, QUESTION, max_tokens=6)


@EACH
def test_the_engine_renders_what_the_trainer_rendered(
    gateway: Gateway, bases: dict[str, Path], model_type: str
) -> None:
    from trainer.tune.model import load_tokenizer

    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
    tokenizer = load_tokenizer(bases[model_type])
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with gateway.http() as client:
        answer = client.post("/tokenize", json={"model": name_of(model_type), "messages": messages})
    assert answer.status_code == 200, answer.text
    assert answer.json()["tokens"] == expected


@EACH
def test_experts_are_refused_by_name_at_upload_and_at_job_creation(
    gateway: Gateway, bases: dict[str, Path], model_type: str, tmp_path: Path
) -> None:
    if model_type not in EXPERTS:
        pytest.skip("has no experts alone")
    module = EXPERTS[model_type]
    made = make_adapter(tmp_path, describe_base(bases[model_type]), modules=(module,))
    pushed = gateway.push("experts", made.directory, base=name_of(model_type))
    assert pushed.status_code == 422
    assert pushed.json()["error"]["code"] == "module_unsupported"
    assert "is an expert of a mixture of experts" in pushed.json()["error"]["message"]
    with gateway.http() as client:
        body = {
            "model": name_of(model_type),
            "training_file": upload(client, "a.jsonl", examples(data_file("tidewater"), 12)),
            "hyperparameters": {"target_modules": [module]},
        }
        refused = client.post("/v1/fine_tuning/jobs", json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "hyperparameters.target_modules"
    assert f"'{module}' cannot be adapted: model.layers.0." in error["message"]
    assert "is an expert of a mixture of experts" in error["message"]
    assert "the base has k_proj, o_proj, q_proj, v_proj" in error["message"]


def test_an_architecture_without_lora_in_the_engine_is_named_before_anything_is_served(tmp_path: Path) -> None:
    base_dir = make_base("gpt2", tmp_path / "tiny-gpt2")
    gateway = Gateway(tmp_path / "home", base_dir, settings=ENGINE)
    gateway.start(wait=False)
    try:
        reason, deadline = "", time.monotonic() + EXITED_S
        while "exited" not in reason and time.monotonic() < deadline:
            time.sleep(0.5)
            with suppress(httpx.TransportError):
                reason = httpx.get(f"{gateway.url}/readyz", timeout=5).text
        assert "GPT2LMHeadModel does not support LoRA" in reason
    finally:
        gateway.stop()
