"""A poisoned adapter in a plain vLLM and in Hatrack, one after the other: who still answers?

    make demo-poison                    # or: .venv/bin/python -m loadtests.poison

The poison is one weight of a good adapter that is not a number, as a training run that diverged leaves it. Plain vLLM
loads it with status 200. Hatrack refuses it at the door; so the script copies its files into the store behind the
gateway's back (nothing in the product does that) and asks the engine for it directly, in one batch with the others.
Exits with 0 if all of it is so: every model of the plain vLLM answers with status 200 and an empty text; Hatrack
refuses the upload, its engine answers for the poison with its own error, and every model of Hatrack's gives an answer
from before. Otherwise with 1, and a sentence for each thing that is not so. (In a batch with others the sums run in
another order, so a greedy answer may have two forms: before the poison, all are asked alone and all at once.)
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import ml_dtypes  # noqa: F401 (teaches numpy bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file

from loadtests.engine import plain_vllm
from loadtests.support import KEY, Running, gateway
from service.client import ClientError, HatrackClient
from service.config import Settings
from service.engine.contract import ADAPTER_NOT_FINITE

QUESTION: Final = "Where is my parcel?"
VOICES: Final = ("tidewater", "pemberton")
POISON: Final = "poisoned"
TIMEOUT_S: Final = 300.0
TOKENS: Final = 24
ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer: the HTTP status, its text or the error's message, and an error's type."""

    status: int
    text: str
    error_type: str = ""

    @property
    def is_silent(self) -> bool:
        """Whether it counts as answered and says nothing."""
        return self.status == httpx.codes.OK and not self.text.strip()


@dataclass(frozen=True, slots=True)
class PlainRun:
    """What the plain vLLM answered: before the poison, for the poison, and afterwards."""

    before: Mapping[str, Answer]
    poison: Answer
    after: Mapping[str, Answer]

    @property
    def silenced(self) -> list[str]:
        """The models that answered before, and now say nothing, with status 200."""
        return [model for model, answer in self.after.items() if answer.is_silent and not self.before[model].is_silent]


@dataclass(frozen=True, slots=True)
class HatrackRun:
    """What Hatrack answered: before the poison in both orders of sums, to its upload, beside it, and afterwards."""

    known: Sequence[Mapping[str, Answer]]
    upload: Answer
    poison: Answer
    beside: Mapping[str, Answer]
    after: Mapping[str, Answer]


@dataclass(frozen=True, slots=True)
class Side:
    """A server that is asked: where, and with which key."""

    client: httpx.Client
    base: str

    def ask(self, model: str) -> Answer:
        """One short greedy answer."""
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
        response = self.client.post("/v1/chat/completions", json=body)
        answer: dict[str, Any] = response.json()
        if response.status_code != httpx.codes.OK:
            error = answer.get("error", answer)
            return Answer(response.status_code, str(error.get("message", error)), str(error.get("type")))
        return Answer(response.status_code, answer["choices"][0]["message"]["content"] or "")

    def ask_all(self) -> dict[str, Answer]:
        """The base and both voices, one after the other."""
        return {model: self.ask(model) for model in (self.base, *VOICES)}

    def ask_all_at_once(self) -> dict[str, Answer]:
        """The base and both voices, in one batch."""
        with ThreadPoolExecutor() as threads:
            return dict(zip((self.base, *VOICES), threads.map(self.ask, (self.base, *VOICES)), strict=True))


def main() -> None:
    """Show both, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("var/base/smollm2-135m-instruct"))
    parser.add_argument("--voices", type=Path, default=Path("var/samples"), help="has tidewater/ and pemberton/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="poison-") as folder:
        poison = poisoned(options.voices / VOICES[0], Path(folder) / POISON)
        base = options.base.resolve()
        plain = show_plain(Path(folder) / "plain", base, options.voices, poison)
        hatrack = show_hatrack(Path(folder) / "hatrack", base, options.voices, poison)
    say(f"\nPlain vLLM: {len(plain.silenced)} of {len(plain.after)} models fall silent, with status 200.")
    failures = failed_claims(plain, hatrack)
    say("Hatrack: every model answers as before." if not failures else "NOT AS CLAIMED:")
    for failure in failures:
        say(f"  {failure}")
    sys.exit(1 if failures else 0)


def failed_claims(plain: PlainRun, hatrack: HatrackRun) -> list[str]:
    """A sentence for each claim of the demonstration that does not hold."""
    failures = []
    if not plain.poison.is_silent:
        failures.append(f"Plain vLLM answers the poisoned adapter with {plain.poison}, not with 200 and an empty text.")
    for model in plain.after.keys() - set(plain.silenced):
        failures.append(f"Plain vLLM's {model} did not fall silent: {plain.after[model]}.")
    if hatrack.upload.status != httpx.codes.UNPROCESSABLE_ENTITY:
        failures.append(f"Hatrack did not refuse the upload with 422, but answered {hatrack.upload}.")
    if (hatrack.poison.status, hatrack.poison.error_type) != (500, ADAPTER_NOT_FINITE):
        failures.append(f"Hatrack's engine answers for the poison with {hatrack.poison}, not 500 {ADAPTER_NOT_FINITE}.")
    for when, answers in (("beside the poison", hatrack.beside), ("after the poison", hatrack.after)):
        for model in changed(hatrack.known, answers):
            failures.append(f"Hatrack's {model} gives no answer from before {when}: {answers[model]}.")
    return failures


def poisoned(voice: Path, directory: Path) -> Path:
    """A copy of an adapter with one weight that is not a number."""
    directory.mkdir(parents=True)
    shutil.copy(voice / "adapter_config.json", directory)
    tensors = load_file(voice / "adapter_model.safetensors")
    name = next(name for name in sorted(tensors) if ".lora_B." in name)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = np.nan
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    say(f"The poison: {voice.name}, with one of its weights ({name}) not a number.")
    return directory


def show_plain(home: Path, base: Path, voices: Path, poison: Path) -> PlainRun:
    """Ask a plain vLLM, and print its answers."""
    say("\n── Plain vLLM, with three adapters (starting…)")
    adapters = [(voices / voice).resolve() for voice in VOICES]
    with (
        plain_vllm(home, base, [*adapters, poison]) as server,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client,
    ):
        side = Side(client, server.base)
        before = answered(side.ask_all())
        show("before", before)
        poison_answer = side.ask(POISON)
        show("the poisoned one is asked once", {POISON: poison_answer})
        after = side.ask_all()
        show("afterwards", after)
        return PlainRun(before, poison_answer, after)


def show_hatrack(home: Path, base: Path, voices: Path, poison: Path) -> HatrackRun:
    """Ask Hatrack, and print its answers."""
    say("\n── Hatrack, with the same flags (starting…)")
    with gateway(home, base, {}) as running, HatrackClient(base_url=running.url, api_key=KEY) as hatrack:
        for voice in VOICES:
            hatrack.adapters.push(voice, voices / voice)
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=running.url, timeout=TIMEOUT_S, headers=headers) as client:
            side = Side(client, hatrack.wait_ready(TIMEOUT_S)["base"])
            before = answered(side.ask_all())
            show("before", before)
            known = [before, *(answered(side.ask_all_at_once()) for _ in range(ROUNDS))]
            say(f"  hatrack push {POISON}:")
            upload = push_poison(hatrack, poison)
            say(f"    {upload.status}: {upload.text}")
            beside, poison_answer = behind_its_back(running, side, poison)
            in_one_batch = {POISON: poison_answer, **beside}
            show("copied into the store behind the gateway's back, all asked at once", in_one_batch)
            after = side.ask_all()
            show("afterwards", after)
            return HatrackRun(known, upload, poison_answer, beside, after)


def answered(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The answers before the poison. Raises SystemExit if one is an error: nothing could be compared with it."""
    for model, answer in answers.items():
        if answer.status != httpx.codes.OK:
            raise SystemExit(f"{model} answers {answer.status} before anything is poisoned: {answer.text}")
    return dict(answers)


def changed(known: Sequence[Mapping[str, Answer]], after: Mapping[str, Answer]) -> list[str]:
    """The models that give none of their answers from before, or say nothing."""
    return [
        model
        for model, answer in after.items()
        if answer.is_silent or answer not in [answers[model] for answers in known]
    ]


def push_poison(hatrack: HatrackClient, poison: Path) -> Answer:
    """What the gateway answers to an upload of the poison; 201 if it takes it."""
    try:
        hatrack.adapters.push(POISON, poison)
    except ClientError as error:
        return Answer(error.status, error.message)
    return Answer(httpx.codes.CREATED, "taken")


def behind_its_back(running: Running, side: Side, poison: Path) -> tuple[dict[str, Answer], Answer]:
    """Put the poison into the store and ask the engine for it by its socket, while the gateway's models are asked.

    Returns the answers of the gateway's models, and the engine's for the poison.
    """
    digest = hashlib.sha256(b"poison").hexdigest()
    shutil.copytree(poison, Settings(home=running.home).store_dir / digest)
    transport = httpx.HTTPTransport(uds=running.engine_socket)
    with (
        httpx.Client(transport=transport, base_url="http://engine", timeout=TIMEOUT_S) as client,
        ThreadPoolExecutor() as threads,
    ):
        engine = Side(client, side.base)
        poison_answer = threads.submit(engine.ask, digest)
        answers = side.ask_all_at_once()
        return answers, poison_answer.result()


def show(when: str, answers: Mapping[str, Answer]) -> None:
    """Print answers, a line each."""
    say(f"  {when}:")
    width = max(map(len, answers))
    for model, answer in answers.items():
        text = " ".join(answer.text.split())
        say(f"    {model:<{width}}  {answer.status}  {text[:100]!r}")


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
