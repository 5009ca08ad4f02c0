"""How long judging takes, stage by stage, compared with the training before it; and with another checkout's judging.

    .venv/bin/python -m loadtests.training.judging --data banking77/train.csv --examples 600 --questions 140
    .venv/bin/python -m loadtests.training.judging --data banking77/train.csv --checkouts ../before,. --rounds 2
    .venv/bin/python -m loadtests.training.judging --data banking77/train.csv --suites mmlu,humaneval
    .venv/bin/python -m loadtests.training.judging --data banking77/train.csv --suites gsm8k --gsm8k DIR --setting …

Starts a Hatrack of its own, trains one adapter on BANKING77, then has it evaluated once per round and checkout, in
turn. All checkouts judge the same version with the same held-out questions, on a copy of the same directory. Prints a
table of seconds, and the CPU seconds of the engine, which other work on the machine disturbs less.

`--suites` runs these suites over all their questions, in place of the general one, and prints what they say. GSM8K's
`test.jsonl` is read from the directory given with `--gsm8k`; `--setting HATRACK_TRAINER_EVALUATE_CONCURRENCY=64` asks
more at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import psutil

from loadtests.support import KEY, Running, gateway, write_json
from loadtests.training.banking import jsonl, read, unlike

POLL_S: Final = 0.2
ADAPTER: Final = "banking"


def main() -> None:
    """Train once, evaluate in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("var/base/smollm2-135m-instruct"))
    parser.add_argument("--home", type=Path, default=Path("var/loadtests/judging"), help="kept: trained there once")
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--questions", type=int, default=140)
    parser.add_argument("--intents", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--checkouts", default=".", help="directories with a .venv each, separated by commas")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="HATRACK_… of all of them")
    parser.add_argument("--suites", default="", help="names, separated by commas")
    parser.add_argument("--gsm8k", type=Path, help="directory with GSM8K's test.jsonl")
    parser.add_argument("--out", type=Path, default=Path("var/loadtests/judging.json"))
    options = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in options.setting)
    suites = [name for name in options.suites.split(",") if name]
    trained = _trained(options, settings)
    settings |= _suite_settings(options, suites)
    found: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for name in options.checkouts.split(","):
            home = options.home / f"at-{Path(name).resolve().name}"
            if not home.exists():
                shutil.copytree(options.home / "trained", home, ignore=shutil.ignore_patterns("*.sock", "run"))
            checkout = Path(name).resolve()
            with gateway(home.resolve(), options.base.resolve(), settings, "--trainer", checkout=checkout) as running:
                found.append({"checkout": name, "round": number, **judge(running, trained, suites)})
                print(json.dumps(found[-1]), flush=True)
    write_json(options.out, {"training": trained, "judging": found})
    print(table(trained, found))
    for suite in found[-1]["suites"]:
        print(f"\n{suite['name']}: {suite['sentence']}\n{json.dumps(suite['numbers'])}")


def _suite_settings(options: argparse.Namespace, suites: Sequence[str]) -> dict[str, str]:
    """All questions of the suites, GSM8K's from the directory, and the sandbox that HumanEval needs."""
    if not suites:
        return {}
    settings = {"HATRACK_TRAINER_SUITES_LIMIT": "20000"}
    if options.gsm8k is not None:
        directory = (options.home / "suites" / "gsm8k").resolve()
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(options.gsm8k / "test.jsonl", directory)
        settings["HATRACK_TRAINER_SUITES_DIR"] = str(directory.parent)
    if "humaneval" in suites:
        settings["HATRACK_TRAINER_SANDBOX"] = "on"
    return settings


def _trained(options: argparse.Namespace, settings: Mapping[str, str]) -> dict[str, Any]:
    """Train the adapter unless it is there; what the job took, and the ids of the files."""
    kept = options.home / "trained.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    rows = read(options.data, seed=0, intents=options.intents)
    taught = rows[: options.examples]
    unseen = unlike(rows[options.examples :], taught)[: options.questions]
    home = (options.home / "trained").resolve()
    with gateway(home, options.base.resolve(), settings, "--trainer") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY)
        training = client.files.create(file=("training.jsonl", jsonl(taught)), purpose="fine-tune").id
        held_out = client.files.create(file=("held-out.jsonl", jsonl(unseen)), purpose="fine-tune").id
        job = client.fine_tuning.jobs.create(
            model=options.base.name,
            training_file=training,
            validation_file=held_out,
            suffix=ADAPTER,
            seed=0,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {} if options.epochs is None else {"n_epochs": options.epochs}},
            },
        )
        began = judged = 0
        while job.status not in ("succeeded", "failed", "cancelled"):
            time.sleep(1)
            job = client.fine_tuning.jobs.retrieve(job.id)
            events = list(client.fine_tuning.jobs.list_events(job.id, limit=100).data)
            began = next((event.created_at for event in events if event.message == "training"), began)
            if not judged and any(event.message.startswith("judging") for event in events):
                judged = int(time.time())
                client.fine_tuning.jobs.cancel(job.id)  # its version stays; it is judged below, by each checkout
        if job.status != "succeeded" or job.fine_tuned_model is None:
            raise SystemExit(f"the job {job.status}: {job.error}")
        trained: dict[str, Any] = {
            "model": job.fine_tuned_model,
            "held_out": held_out,
            "examples": options.examples,
            "questions": options.questions,
            "training_s": judged - began,
            "trained_tokens": job.trained_tokens,
            "job": job.model_dump(),
        }
    write_json(kept, trained)
    return trained


def judge(running: Running, trained: Mapping[str, Any], suites: Sequence[str] = ()) -> dict[str, Any]:
    """Have the version evaluated; seconds per stage and in all, and the engine's CPU seconds."""
    stages: dict[str, float] = {}
    cpu: dict[str, float] = {}
    with httpx.Client(base_url=running.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        body = {"model": trained["model"], "held_out": trained["held_out"], "promote": "never"}
        if suites:
            body["suites"] = list(suites)
        evaluation = client.post("/v1/evaluations", json=body).raise_for_status().json()
        began, at, used, stage = time.monotonic(), time.monotonic(), engine_cpu_s(running.pid), "starting"
        while evaluation["status"] not in ("succeeded", "failed", "cancelled"):
            time.sleep(POLL_S)
            evaluation = client.get(f"/v1/evaluations/{evaluation['id']}").raise_for_status().json()
            now, cpu_now = time.monotonic(), engine_cpu_s(running.pid)
            stages[stage] = stages.get(stage, 0.0) + now - at
            cpu[stage] = cpu.get(stage, 0.0) + cpu_now - used
            at, used, stage = now, cpu_now, (evaluation["progress"] or {}).get("stage", stage)
        if evaluation["status"] != "succeeded":
            raise SystemExit(f"the evaluation {evaluation['status']}: {evaluation['error']}")
        report = client.get(f"/v1/evaluations/{evaluation['id']}/report").raise_for_status().json()
    return {
        "seconds": time.monotonic() - began,
        "engine_cpu_s": sum(cpu.values()),
        "verdict": evaluation["verdict"],
        "sentence": evaluation["sentence"],
        "stages": stages,
        "stages_cpu_s": cpu,
        "suites": report["suites"] if suites else [],
    }


def engine_cpu_s(pid: int) -> float:
    """CPU seconds of the processes under the gateway that are vLLM's."""
    total = 0.0
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if any("vllm" in part or "EngineCore" in part for part in process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.Error:
            continue
    return total


def table(trained: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: a row per stage, a column per evaluation, as seconds / the engine's CPU seconds."""
    names = list(dict.fromkeys(stage for each in found for stage in each["stages"]))
    head = [f"{each['checkout']}, round {each['round'] + 1}" for each in found]
    lines = [
        f"Training took {trained['training_s']} s ({trained['examples']} examples, {trained['trained_tokens']} trained "
        f"tokens); {trained['questions']} are held out.",
        "",
        f"| stage | {' | '.join(head)} |",
        "|---|" + "---:|" * len(head),
    ]
    for name in names:
        cells = [f"{each['stages'].get(name, 0):.0f} / {each['stages_cpu_s'].get(name, 0):.0f}" for each in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = [f"{each['seconds']:.0f} / {each['engine_cpu_s']:.0f}" for each in found]
    return "\n".join([*lines, f"| all | {' | '.join(totals)} |"])


if __name__ == "__main__":
    main()
