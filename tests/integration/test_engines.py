"""Three real engines over two bases behind one gateway: which one answers, what the death of one costs, and a move from
one base to the other. The bases are tiny and random."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.base import describe
from tests.support.adapters import make_adapter
from tests.support.gateway import Gateway
from tests.support.scheduling import normal_priority
from tests.support.tiny_models import make_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
READY_S = 600.0
VOICES = 6
LETTERS = 2
"""Of an answer, by which it is known whose it is."""
FILE = """
[[engine]]
name = "first"
base = "{first}"
[[engine]]
name = "second-0"
base = "{second}"
[[engine]]
name = "second-1"
base = "{second}"
"""
SETTINGS = {
    "HATRACK_BASE_MODEL": "",
    "HATRACK_ENGINE_SLOTS": "4",
    "HATRACK_ENGINE_RESIDENT": "8",
    "HATRACK_ENGINE_ARGS": "--enforce-eager",
    "HATRACK_TRAINER_EVALUATE_REPEATS": "1",
    # what random weights forget of the world's knowledge is chance
    "HATRACK_TRAINER_FORGET_ITEMS": "20",
    "HATRACK_TRAINER_FORGET_ACCURACY": "1",
    "HATRACK_TRAINER_FORGET_CHAT": "1",
    "HATRACK_TRAINER_FORGET_PERPLEXITY": "1000000",
    # two tiny models learn it more or less well; whether one is as good as the other is not what is tested
    "HATRACK_TRAINER_LIVE_MARGIN": "0.6",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"first": make_base("llama", root / "first"), "second": make_base("qwen3", root / "second", seed=1)}


@pytest.fixture(scope="module")
def gateway(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    (home / "engines.toml").write_text(FILE.format(**bases))
    settings = SETTINGS | {"HATRACK_ENGINES": str(home / "engines.toml")}
    started = Gateway(home, bases["first"], settings=settings, arguments=("--trainer",))
    with normal_priority():
        try:
            started.start()
            until_all_ready(started)
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="module")
def texts(gateway: Gateway, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each voice of the second base says, by its name; each says something else."""
    root = tmp_path_factory.mktemp("voices")
    about = describe(bases["second"], served_name="second", dtype=dtype(gateway), quantization=None, engine_version="0")
    for number in range(VOICES):
        make_adapter(root / str(number), about, seed=number, scale=0.3)
        pushed = gateway.push(f"voice-{number}", root / str(number), base="second")
        assert pushed.status_code == 201, pushed.text
        assert pushed.json()["base_name"] == "second"
    said = {f"voice-{number}": say(gateway, f"voice-{number}") for number in range(VOICES)}
    assert len(set(said.values())) == VOICES
    return said


def dtype(gateway: Gateway) -> str:
    with gateway.http() as http:
        body = {"name": "probe", "settings": {"system_prompt": "Be brief."}, "base": "second"}
        return str(http.post("/v1/adapters", json=body).json()["base"]["dtype"])


def engines(gateway: Gateway) -> dict[str, dict[str, Any]]:
    with gateway.http() as http:
        return {engine["name"]: engine for engine in http.get("/readyz").json()["engines"]}


def until_all_ready(gateway: Gateway) -> None:
    deadline = time.monotonic() + READY_S
    while {engine["state"] for engine in engines(gateway).values()} != {"ready"}:
        assert time.monotonic() < deadline, gateway.log()
        time.sleep(0.5)


def say(gateway: Gateway, model: str, tokens: int = 8) -> str:
    return str(ask(gateway, model, tokens)["choices"][0]["text"])


def ask(gateway: Gateway, model: str, tokens: int) -> dict[str, Any]:
    body = {"model": model, "prompt": "Where is my parcel?", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    with gateway.http() as http:
        return dict(http.post("/v1/completions", json=body).json())


def nearest(text: str, texts: dict[str, str]) -> str | None:
    """The voice whose text begins as ``text`` does; None if none has its first letters.

    In a batch of another size numbers are rounded otherwise, and random weights have ties that this decides: an answer
    may go on differently.
    """
    alike = {voice: sum(itertools.takewhile(bool, map(str.__eq__, text, own))) for voice, own in texts.items()}
    closest = max(alike, key=lambda voice: alike[voice])
    return closest if alike[closest] >= LETTERS else None


def granted(gateway: Gateway, engine: str) -> float:
    line = f'hatrack_admission_granted_total{{class="caller",engine="{engine}"}} '
    return next(float(each[len(line) :]) for each in gateway.metrics().splitlines() if each.startswith(line))


def test_both_bases_are_listed_and_answer_by_their_names(gateway: Gateway, texts: dict[str, str]) -> None:
    with gateway.http() as http:
        parents = {card["id"]: card["parent"] for card in http.get("/v1/models").json()["data"]}
    assert (parents["first"], parents["second"], parents["voice-0"]) == (None, None, "second")
    assert {engine["base"] for engine in engines(gateway).values()} == {"first", "second"}
    assert len({say(gateway, "first"), say(gateway, "second"), *texts.values()}) == 2 + VOICES
    assert granted(gateway, "first") > 0


def test_each_adapter_keeps_to_one_engine_of_its_group(gateway: Gateway, texts: dict[str, str]) -> None:
    homes = {}
    for voice in texts:
        before = {name: granted(gateway, name) for name in ("second-0", "second-1")}
        for _ in range(2):
            assert say(gateway, voice) == texts[voice]
        gained = {name: granted(gateway, name) - count for name, count in before.items()}
        assert sorted(gained.values()) == [0, 2], "both requests went to one engine"
        homes[voice] = max(gained, key=lambda name: gained[name])
    assert set(homes.values()) == {"second-0", "second-1"}


def test_the_death_of_an_engine_costs_what_was_open_in_it_and_no_more(gateway: Gateway, texts: dict[str, str]) -> None:
    answers: list[tuple[float, float, str, Any]] = []
    ended = threading.Event()

    def keep_asking(voice: str) -> None:
        while not ended.is_set():
            began = time.monotonic()
            answer = ask(gateway, voice, 8)
            text = answer["choices"][0]["text"] if "choices" in answer else None
            answers.append((began, time.monotonic(), voice, text or answer["error"]["code"]))

    threads = [threading.Thread(target=keep_asking, args=(voice,)) for voice in texts]
    for thread in threads:
        thread.start()
    time.sleep(2)
    server = psutil.Process(json.loads((gateway.home / "engines" / "second-0" / "engine.json").read_bytes())["pid"])
    for process in [*server.children(recursive=True), server]:
        process.kill()
    killed = time.monotonic()
    while sum(began > killed for began, *_ in list(answers)) < 5 * VOICES:
        time.sleep(0.1)
    ended.set()
    for thread in threads:
        thread.join()
    failed = [(began, ended_at, text) for began, ended_at, voice, text in answers if nearest(text, texts) != voice]
    assert len(failed) <= VOICES, "no more than the streams that were open on it"
    assert all(began < killed + 1 for began, *_ in failed), "what came later went to the other engine"
    until_all_ready(gateway)
    assert {voice: say(gateway, voice) for voice in texts} == texts


def rows() -> list[dict[str, Any]]:
    """Requests and what they ask for, of four kinds: what a tiny model can learn."""
    kinds = {"Book": "reserve", "Cancel": "cancel", "Move": "change", "Check": "status"}
    things = ("a table", "a room", "my flight", "the car", "a ticket", "the boat", "a desk")
    places = ("Rome", "Paris", "Oslo", "Bern", "Cairo", "Lima", "Delhi", "Tokyo", "Seoul", "Quito", "Athens", "Madrid")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{kind} {thing} in {place}"},
                {"role": "assistant", "content": kinds[kind]},
            ]
        }
        for kind, thing, place in itertools.product(kinds, things, places)
    ]


def test_a_job_trains_for_the_base_that_it_names_and_rebase_moves_it_to_another(gateway: Gateway) -> None:
    path = gateway.home / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    options = ("--set", "n_epochs=2", "--held-out-share", "0.3")
    trained = hatrack(gateway, "train", str(path), "--name", "intents", "--base", "second", *options, "--json")
    assert trained["status"] == "succeeded", trained["error"]
    assert trained["hatrack"]["verdict"]["live"], json.dumps(trained["hatrack"]["verdict"])[:4000]
    assert version(gateway, "intents", 1)["base_name"] == "second"
    (plan,) = [
        step
        for step in hatrack(gateway, "rebase", "--to", "first", "--dry-run", "--json")
        if "intents" in step["version"]
    ]
    assert (plan["version"], plan["base"], plan["way"]) == (trained["fine_tuned_model"], "second", "train")

    (moved,) = hatrack(gateway, "rebase", "intents", "--to", "first", "--yes", "--json")
    assert moved["is_live"], json.dumps(moved)
    name, _, number = moved["made"].partition("@")
    assert version(gateway, name, int(number))["base_name"] == "first"
    with gateway.http() as http:
        job = http.get(f"/v1/fine_tuning/jobs/{moved['run']}").json()
        assert http.get("/v1/models/intents").json()["parent"] == "first"
        verdicts = http.get(f"/v1/adapters/{name}/versions/{number}/verdicts").json()["data"]
        # not the verdict's request: that is what a revalidation repeats, without what was live at the time
        report = http.get(f"/v1/files/{verdicts[0]['files']['report']}/content").json()
    assert job["model"] == "first"
    assert report["served"]["live"].startswith(trained["fine_tuned_model"]), json.dumps(report["served"])
    assert report["verdict"]["against_live"], "it was judged beside its predecessor"
    assert gateway.answer("intents", "Cancel the boat in Bern") == "cancel"


def version(gateway: Gateway, name: str, number: int) -> dict[str, Any]:
    with gateway.http() as http:
        return dict(http.get(f"/v1/adapters/{name}/versions/{number}").json())


def hatrack(gateway: Gateway, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments], env=gateway.environment, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
