"""The registry against the real engine: every push is proven, broken adapters are refused, and nobody else notices."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from adapters.base import BaseDescription
from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

PATIENCE_S = 600.0
UMBRELLAS = "Do you sell umbrellas?"


@pytest.fixture(scope="module")
def base(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    return describe_base(base_dir, cache_dir=tmp_path_factory.mktemp("base-cache"))


@pytest.fixture(scope="module")
def sound_adapter(base: BaseDescription, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter that is strong enough to be seen."""
    return make_adapter(tmp_path_factory.mktemp("sound"), base, rank=8, seed=7).directory


@pytest.fixture(scope="module")
def tidewater_answers(gateway: Gateway) -> set[str]:
    """The answers of a sound adapter before any broken one is pushed."""
    return gateway.answer_samples("tidewater", UMBRELLAS, max_tokens=12)


def error_code(response: Any) -> str:
    return str(response.json()["error"]["code"])


REFUSALS = {
    "nan": "weights_not_finite",
    "infinite": "weights_not_finite",
    "overflow": "update_too_large",
    "zero_effect": "no_effect",
    "wrong_shape": "shape_mismatch",
    "dora": "dora_unsupported",
    "truncated": "weights_invalid",
    "missing_pair": "pair_incomplete",
    "unknown_layer": "module_unknown",
}


@pytest.mark.parametrize("variant", REFUSALS)
def test_a_broken_adapter_gets_its_own_error_and_leaves_nothing(
    gateway: Gateway, base: BaseDescription, tidewater_answers: set[str], tmp_path: Path, variant: Any
) -> None:
    files = make_adapter(tmp_path / "adapter", base, rank=4, variant=variant)
    name = f"broken-{variant.replace('_', '-')}"
    response = gateway.push(name, files.directory)
    assert response.status_code == 422, response.text
    assert error_code(response) == REFUSALS[variant]
    with gateway.http() as http:
        assert http.get(f"/v1/adapters/{name}").status_code == 404
    assert gateway.still_answers(tidewater_answers, "tidewater", UMBRELLAS, max_tokens=12)


@pytest.mark.slow
def test_an_adapter_that_plain_peft_made_answers_at_once_after_its_201(
    gateway: Gateway, base_dir: Path, tmp_path: Path
) -> None:
    script = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(3)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
for name, parameter in peft.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.02)
peft.save_pretrained(sys.argv[2])
"""
    out = tmp_path / "peft"
    subprocess.run([sys.executable, "-c", script, str(base_dir), str(out)], check=True, timeout=600)
    response = gateway.push("plain-peft", out)
    assert response.status_code == 201, response.text
    version = response.json()
    assert version["object"] == "adapter.version"
    assert version["state"] == "ready"
    assert version["servable"] in ("ok", {"ok": True, "reason": "ok"}, True)
    assert version["aliases"] == ["live"]
    assert version["rank"] == 8
    assert version["digest"] in gateway.loaded(), "its first request would have to wait for it"
    with gateway.http() as http:
        body = {"model": "plain-peft", "prompt": "The sea", "max_tokens": 8, "stream": True, "temperature": 0}
        with http.stream("POST", "/v1/completions", json=body) as stream:
            assert stream.status_code == 200
            next(line for line in stream.iter_lines() if line.startswith("data: "))
        files = f"/v1/adapters/plain-peft/versions/{version['version']}/files"
        for kind, name in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")):
            got = http.get(f"{files}/{kind}").content
            assert hashlib.sha256(got).digest() == hashlib.sha256((out / name).read_bytes()).digest()
        assert http.delete("/v1/adapters/plain-peft", params={"force": "true"}).status_code == 204


@pytest.mark.slow
def test_the_same_push_twice_is_one_version_and_other_settings_are_another(
    gateway: Gateway, sound_adapter: Path
) -> None:
    first = gateway.push("twice", sound_adapter)
    again = gateway.push("twice", sound_adapter)
    assert first.status_code == 201, first.text
    assert again.status_code in (200, 201)
    assert again.json()["version"] == first.json()["version"] == 1
    changed = gateway.push("twice", sound_adapter, settings=json.dumps({"system_prompt": "You are brief."}))
    assert changed.status_code == 201, changed.text
    assert changed.json()["version"] == 2
    assert changed.json()["digest"] == first.json()["digest"]
    assert changed.json()["aliases"] == []


def test_a_failed_proof_without_waiting_stays_readable_and_is_listed_nowhere(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    files = make_adapter(tmp_path / "zero", base, rank=4, variant="zero_effect", seed=5)
    response = gateway.push("later", files.directory, wait=False)
    assert response.status_code == 202, response.text
    # of an adapter without effect the proof needs no engine: it can have failed before the answer is written
    assert response.json()["state"] in ("proving", "rejected")
    number = response.json()["version"]
    with gateway.http() as http:
        deadline = time.monotonic() + PATIENCE_S
        while (version := http.get(f"/v1/adapters/later/versions/{number}").json())["state"] == "proving":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert version["state"] == "rejected", version
        assert "later" not in [adapter["name"] for adapter in http.get("/v1/adapters").json()["data"]]
        assert "later" not in [model["id"] for model in http.get("/v1/models").json()["data"]]


def test_promotion_and_rollback_under_load_fail_no_request(
    gateway: Gateway, base: BaseDescription, sound_adapter: Path, tmp_path: Path
) -> None:
    other = make_adapter(tmp_path / "other", base, rank=8, seed=8)
    assert gateway.push("moving", sound_adapter).status_code == 201
    assert gateway.push("moving", other.directory).status_code == 201
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            response = gateway.chat("moving", "hello", max_tokens=4)
            seen.append((response.status_code, response.headers.get("x-hatrack-adapter", "")))

    def wait_until_answered_by(version: str) -> None:
        """Until requests that came after the move have been answered, however long one takes."""
        since = len(seen)
        wait_until(
            lambda: version in {by for _, by in seen[since:]}, f"{version} does not answer", timeout_s=PATIENCE_S
        )

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with gateway.http() as http:
            for _ in range(3):
                wait_until_answered_by("moving@1")
                moved = http.put("/v1/adapters/moving/aliases/live", json={"version": 2})
                assert moved.status_code == 200, moved.text
                wait_until_answered_by("moving@2")
                back = http.post("/v1/adapters/moving/aliases/live/rollback")
                assert back.status_code == 200, back.text
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}
    assert {adapter for _, adapter in seen} == {"moving@1", "moving@2"}
    with gateway.http() as http:
        alias = http.get("/v1/adapters/moving/aliases/live").json()
        assert alias["version"] == 1
        assert len(alias["history"]) == 7
        missing = http.put("/v1/adapters/moving/aliases/live", json={"version": 99})
        assert missing.status_code in (404, 422)


@pytest.mark.slow
def test_a_live_version_is_deleted_only_by_force_and_can_be_pushed_again(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    files = make_adapter(tmp_path / "gone", base, rank=4, seed=21)
    assert gateway.push("gone", files.directory).status_code == 201
    with gateway.http() as http:
        refused = http.delete("/v1/adapters/gone/versions/1")
        assert refused.status_code == 422, refused.text
        assert http.delete("/v1/adapters/gone/versions/1", params={"force": "true"}).status_code == 204
    response = gateway.chat("gone", "hello")
    assert response.status_code == 404
    # the engine still knows the digest and may ask for its files again: pushed once more it serves at once
    assert gateway.push("gone", files.directory).status_code == 201
    assert gateway.chat("gone", "hello").status_code == 200


def test_without_a_live_alias_the_name_is_404_and_the_version_answers(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    files = make_adapter(tmp_path / "quiet", base, rank=4, seed=31)
    pushed = gateway.push("quiet", files.directory, alias="")
    assert pushed.status_code == 201, pushed.text
    assert pushed.json()["aliases"] == []
    response = gateway.chat("quiet", "hello")
    assert response.status_code == 404
    assert error_code(response) == "no_live_version"
    assert gateway.chat("quiet@1", "hello").status_code == 200


def test_an_adapters_settings_are_applied_and_the_requests_own_win(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    files = make_adapter(tmp_path / "tuned", base, rank=4, seed=41)
    settings = {
        "system_prompt": "You answer in one word only, always the same word: banana.",
        "sampling": {"max_tokens": 3},
    }
    assert gateway.push("tuned", files.directory, settings=json.dumps(settings)).status_code == 201
    body = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    with gateway.http() as http:
        default = http.post("/v1/chat/completions", json=body).json()
        own = http.post("/v1/chat/completions", json=body | {"max_tokens": 5, "ignore_eos": True}).json()
        system = {"role": "system", "content": "Hello."}
        brought = http.post("/v1/chat/completions", json=body | {"messages": [system, *body["messages"]]}).json()
    assert default["usage"]["completion_tokens"] <= 3
    assert own["usage"]["completion_tokens"] == 5
    assert default["usage"]["prompt_tokens"] > brought["usage"]["prompt_tokens"]


def test_uploads_that_are_not_an_adapter_are_refused(gateway: Gateway, sound_adapter: Path, tmp_path: Path) -> None:
    def post(files: dict[str, Any], **fields: str) -> Any:
        with gateway.http() as http:
            return http.post("/v1/adapters", data=fields, files=files)

    config = ("adapter_config.json", (sound_adapter / "adapter_config.json").read_bytes())
    weights = ("adapter_model.safetensors", (sound_adapter / "adapter_model.safetensors").read_bytes())
    assert post({"config": config}, name="x").status_code == 400
    assert post({"config": config, "weights": weights}).status_code == 400
    bad_name = post({"config": config, "weights": weights}, name="No Such Name")
    assert bad_name.status_code == 422 or bad_name.status_code == 400
    assert error_code(bad_name) == "name_invalid"
    pickle = post({"config": config, "weights": ("adapter_model.bin", b"PK\x03\x04junk")}, name="x")
    assert pickle.status_code == 415, pickle.text
    unknown = post({"config": config, "weights": weights, "extra": ("e", b"")}, name="x")
    assert unknown.status_code == 400
    with gateway.http() as http:
        nothing = http.post("/v1/adapters", json={"name": "x", "settings": {}})
        assert (nothing.status_code, error_code(nothing)) == (400, "missing_required_parameter")
        assert http.post("/v1/adapters", content=b"x", headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.slow
def test_a_weak_adapter_gets_a_warning_or_is_refused(gateway: Gateway, sound_adapter: Path, tmp_path: Path) -> None:
    weak = tmp_path / "weak"
    shutil.copytree(sound_adapter, weak)
    tensors = load_file(weak / "adapter_model.safetensors")
    for name, value in tensors.items():
        if "lora_B" in name:
            tensors[name] = (value.astype("float32") * 1e-3).astype(value.dtype)
    save_file(tensors, weak / "adapter_model.safetensors")
    response = gateway.push("weak", weak)
    if response.status_code == 201:
        assert response.json()["warnings"]
    else:
        assert error_code(response) == "not_applied"
