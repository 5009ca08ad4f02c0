"""`hatrack advise` through gateway, engine and trainer: every rung is measured, and can be asked like any version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import hatrack, run_hatrack
from tests.support.gateway import Gateway

pytestmark = pytest.mark.slow
TOPICS = {
    "delivery": ("parcel", "courier", "shipment", "delivery van"),
    "payment": ("card", "invoice", "refund", "bank transfer"),
    "account": ("password", "login", "profile", "e-mail address"),
}
PATTERNS = (
    *("Where can I look up my {}?", "My {} is wrong, what now?", "How do I change my {}?", "I never got my {}."),
    *("Who can help me with a {}?", "Is there a problem with my {} today?", "Tell me about your {} please."),
    *("The {} makes me furious!", "Can a friend use my {}?", "What does a {} cost?", "Does the {} work abroad?"),
)


def labelled(path: Path) -> Path:
    """132 questions of three labels."""
    rows = [
        {"messages": [{"role": "user", "content": pattern.format(word)}, {"role": "assistant", "content": label}]}
        for pattern in PATTERNS
        for label, words in TOPICS.items()
        for word in words
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TEACHER = (
    "Say what a message is about, with one word: delivery, payment or account. A parcel, courier, shipment or van is "
    "delivery; a card, invoice, refund or transfer is payment; a password, login, profile or e-mail is account."
)
UNLABELLED = ("Please help me with the {}!", "Why does nobody answer about my {}?", "Thanks, the {} is fine now.")


def unlabelled(path: Path) -> Path:
    """36 prompts without answers, and one of the questions that may be held out."""
    asked = [pattern.format(word) for pattern in UNLABELLED for words in TOPICS.values() for word in words]
    rows = [{"prompt": text} for text in (*asked, PATTERNS[0].format("parcel"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rung_to_ship(report: dict[str, Any]) -> str:
    """The version of the rung that is advised; where the data cannot tell, that of the best one with a version."""
    rungs = [each for each in report["rungs"] if "@" in each["model"] and each["held_back"] is None]
    best = max(rungs, key=lambda each: float(each["mean"]["mean"]))
    advised = report["advice"]["rung"]
    return str(next((each["model"] for each in rungs if each["key"] == advised), best["model"]))


def test_a_ladder_from_the_data_to_its_advice(gateway: Gateway, tmp_path: Path) -> None:
    page = tmp_path / "advice.html"
    data = labelled(tmp_path / "examples.jsonl")
    hatrack(gateway, "push", "desk-teacher", "--system-prompt", TEACHER)
    teacher = ("--teacher", "desk-teacher", "--unlabelled", str(unlabelled(tmp_path / "prompts.jsonl")))
    options = ("--name", "desk", "--quick", "--html", str(page), "--json", *teacher)
    advised = run_hatrack(gateway, "advise", str(data), *options)
    assert advised.returncode in (0, 4), advised.stderr
    report = json.loads(advised.stdout)
    assert report["metric"].startswith("exactly right")
    measured = {rung["key"]: rung for rung in report["rungs"]}
    assert list(measured)[:4] == ["base", "instructions", "examples", "retrieved_examples"]
    skipped = {each["key"]: each["reason"] for each in report["skipped"]}
    assert "lora" in measured or "lora" in skipped
    assert all(rung["first_token"]["median_seconds"] > 0 for rung in report["rungs"])
    if "distilled" in measured:
        labels = report["labels"]
        assert labels["teacher"] == "desk-teacher@1"
        assert labels["answered"] + labels["refused"] + labels["truncated"] == labels["prompts"] >= 36
        assert labels["engine_seconds"] > 0
        assert measured["distilled"]["once"]["device_seconds"] > labels["engine_seconds"]
    else:
        assert skipped["distilled"]
    assert report["advice"]["sentence"] in page.read_text()
    assert "- delivery" in measured["instructions"]["system_prompt"]
    for rung in report["rungs"][1:]:
        answer = gateway.chat(rung["model"], "Where is my parcel?", max_tokens=4)
        assert answer.headers["x-hatrack-adapter"] == rung["model"]
    newest = run_hatrack(gateway, "advice", "--json")
    shown = json.loads(newest.stdout)
    assert shown["id"] == report["id"]
    assert "A YEAR" in run_hatrack(gateway, "advice").stdout
    chosen = rung_to_ship(shown)
    version = chosen.partition("@")[2]
    assert f"@{version}" in hatrack(gateway, "cost", "--year", "desk")
    hatrack(gateway, "promote", chosen)
    with gateway.http() as http:
        assert http.get("/v1/adapters/desk").json()["aliases"]["live"] == int(version)
