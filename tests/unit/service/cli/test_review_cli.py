"""`hatrack review` against a gateway on a real socket that keeps pairs, from a pipe and at a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.support.http import QuietHandler

Hatrack = Callable[..., Result]
PATH = re.compile(r"/v1/reviews(?:/([^/]+)(?:/end)?)?")


@dataclass
class Reviews:
    """What the gateway would have of one evaluation."""

    url: str = ""
    choices: dict[str, str | None] = field(default_factory=lambda: {f"rev-{at}": None for at in range(3)})
    judge: str | None = "strict"
    reviewers: int = 1
    others_are_done: bool = True
    taken: str | None = None
    """A pair that others take while it is looked at."""
    created: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    ended: str | None = None

    def end(self, evaluation: str) -> tuple[int, dict[str, Any]]:
        self.ended = evaluation
        return 200, self.summary()

    def answer(self, name: str | None, query: dict[str, list[str]], body: Any) -> tuple[int, dict[str, Any]]:
        if body is not None and name is None:
            return self.create(body)
        if body is not None and name == self.taken:
            self.choices[str(name)] = "others"
            return 409, {"error": {"message": "taken", "type": "t", "param": None, "code": "review_taken"}}
        if body is not None:
            self.choices[str(name)] = body["choice"]
            return 200, self.pair(str(name))
        if name is None:
            return 200, {"object": "list", "data": [self.summary()] if self.choices else [], "has_more": False}
        self.asked.append(query)
        after = query.get("after", [""])[0]
        left = [each for each, choice in self.choices.items() if choice is None and each > after]
        if query.get("evaluation", ["eval-1"]) != ["eval-1"]:
            error = {"message": "there are no reviews of 'eval-2'", "type": "t", "param": None, "code": "not_found"}
            return 404, {"error": error}
        counted = {"reviewed": sum(each is not None for each in self.choices.values()), "total": len(self.choices)}
        pair = self.pair(left[0]) if left else None
        return 200, {
            "object": "review.next",
            "review": pair,
            "evaluation": "eval-1" if self.choices else None,
            **counted,
        }

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.created:
            error = {
                "message": "`eval-1` already has pairs",
                "type": "t",
                "param": "evaluation",
                "code": "reviews_exist",
            }
            return 409, {"error": error}
        self.created.append(body)
        self.judge, self.reviewers = None, body.get("reviewers", 1)
        return 200, self.summary()

    def pair(self, name: str) -> dict[str, Any]:
        return {
            "object": "review",
            "id": name,
            "evaluation": "eval-1",
            "asked": [{"role": "user", "content": f"Where is parcel {name}?"}],
            "reference": "On its way.",
            "first": f"The first of {name}.\x1b[31m",
            "second": "x" * 200,
            "choice": self.choices[name],
        }

    def summary(self) -> dict[str, Any]:
        reviewed = sum(each is not None for each in self.choices.values())
        final = self.ended is not None or (reviewed == len(self.choices) and self.others_are_done)
        if self.judge is None:
            people = {"mean": 0.58, "low": 0.452, "high": 0.708, "sentence": "People chose voice@3 24 times."}
            return {
                "id": "eval-1",
                "judge": None,
                "pairs": len(self.choices),
                "reviewed": reviewed,
                "reviewers": self.reviewers,
                "final": final,
                "agreement": None,
                "standing": None,
                "counted": False,
                "more_reviews": None,
                "people": people if final else None,
                "sentence": people["sentence"] if final else "0 of 3 pairs are reviewed.",
            }
        kappa = {"kappa": 0.71, "low": 0.5, "high": 0.9, "observed": 0.9, "pairs": 60}
        return {
            "id": "eval-1",
            "judge": "strict",
            "pairs": len(self.choices),
            "reviewed": reviewed,
            "final": reviewed == len(self.choices),
            "agreement": kappa,
            "standing": kappa | {"kappa": None, "lean": 0.03, "lean_low": -0.04, "lean_high": 0.1},
            "counted": True,
            "more_reviews": 40,
            "sentence": "The judge strict counts.",
        }


@pytest.fixture
def reviews() -> Iterator[Reviews]:
    kept = Reviews()

    class Handler(QuietHandler):
        def handle_it(self) -> None:
            split = urlsplit(self.path)
            found = PATH.fullmatch(split.path)
            assert found is not None
            assert self.headers["authorization"] == "Bearer hk-test"
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            ends = split.path.endswith("/end")
            status, answer = kept.end(found[1]) if ends else kept.answer(found[1], parse_qs(split.query), body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_it

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hatrack(reviews: Reviews, monkeypatch: pytest.MonkeyPatch) -> Hatrack:
    monkeypatch.setenv("HATRACK_URL", reviews.url)
    monkeypatch.setenv("HATRACK_KEY", "hk-test")

    def call(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ["review", *arguments], input=stdin)

    return call


def test_a_line_a_pair(hatrack: Hatrack, reviews: Reviews) -> None:
    result = hatrack(stdin="1\n2\nT\n")
    assert result.exit_code == 0
    assert reviews.choices == {"rev-0": "first", "rev-1": "second", "rev-2": "tie"}
    assert "1 of 3" in result.stdout
    assert "3 of 3" in result.stdout
    assert "Where is parcel rev-0?" in result.stdout
    assert "On its way." in result.stdout
    assert "3 reviewed." in result.stdout
    assert "The judge strict counts." in result.stdout


def test_what_models_say_steers_no_terminal(hatrack: Hatrack) -> None:
    result = hatrack(stdin="q\n")
    assert "The first of rev-0." in result.stdout
    assert "\x1b[31m" not in result.stdout


def test_what_is_no_key_is_asked_again(hatrack: Hatrack, reviews: Reviews) -> None:
    hatrack(stdin="x\n\n3\n1\nq\n")
    assert list(reviews.choices.values()) == ["first", None, None]


def test_a_pair_is_skipped_and_quitting_keeps_what_was_said(hatrack: Hatrack, reviews: Reviews) -> None:
    result = hatrack("eval-1", stdin="s\n2\nq\n")
    assert result.exit_code == 0
    assert list(reviews.choices.values()) == [None, "second", None]
    assert reviews.asked[1] == {"evaluation": ["eval-1"], "after": ["rev-0"]}
    assert "1 reviewed. Run `hatrack review eval-1` to continue." in result.stdout


def test_the_end_of_the_input_is_the_end(hatrack: Hatrack, reviews: Reviews) -> None:
    result = hatrack(stdin="1\n")
    assert result.exit_code == 0
    assert "1 reviewed" in result.stdout
    assert list(reviews.choices.values()) == ["first", None, None]


def test_nothing_to_look_at(hatrack: Hatrack, reviews: Reviews) -> None:
    reviews.choices.clear()
    for result in (hatrack(), hatrack("--list")):
        assert result.exit_code == 0
        assert "Nothing to review." in result.stdout


def test_the_list_says_how_far_people_are_and_agree(hatrack: Hatrack) -> None:
    result = hatrack("--list")
    row = re.search(r"eval-1 +0 of 3 .*", result.stdout)
    assert row is not None
    assert re.split(r" {2,}", row[0].strip())[1:] == [
        *("0 of 3", "-", "strict", "0.71 (0.50 to 0.90, 60 pairs)", "-", "yes", "+3.0 (-4.0 to +10.0)", "40"),
    ]
    assert json.loads(hatrack("--json").stdout)[0]["agreement"]["kappa"] == 0.71


def test_pairs_are_drawn_without_a_judge_and_reviewed_at_once(hatrack: Hatrack, reviews: Reviews) -> None:
    result = hatrack("eval-1", "--start", "--pairs", "3", stdin="1\n2\nt\n")
    assert result.exit_code == 0, result.output
    assert reviews.created == [{"evaluation": "eval-1", "pairs": 3}]
    assert list(reviews.choices.values()) == ["first", "second", "tie"]
    assert "3 pairs to review." in result.stdout
    assert result.stdout.count("People chose voice@3 24 times.") == 1
    row = re.search(r"eval-1 +3 of 3 .*", hatrack("--list").stdout)
    assert row is not None
    assert re.split(r" {2,}", row[0].strip())[2:] == ["58.0 (45.2 to 70.8; 50 is even)", *["-"] * 6]


def test_with_several_reviewers_the_outcome_waits_for_the_others(hatrack: Hatrack, reviews: Reviews) -> None:
    reviews.others_are_done = False
    result = hatrack("eval-1", "--start", "--reviewers", "2", stdin="1\n1\n1\n")
    assert reviews.created == [{"evaluation": "eval-1", "reviewers": 2}]
    assert "Other reviewers have yet to choose" in result.stdout
    assert "People chose" not in result.stdout


def test_a_review_whose_reviewers_do_not_come_is_ended(hatrack: Hatrack, reviews: Reviews) -> None:
    hatrack("eval-1", "--start", "--reviewers", "2", stdin="1\n1\nq\n")
    result = hatrack("eval-1", "--end")
    assert (result.exit_code, reviews.ended) == (0, "eval-1")
    assert result.stdout == "People chose voice@3 24 times.\n"
    assert json.loads(hatrack("eval-1", "--end", "--json").stdout)["final"] is True


def test_a_pair_that_others_take_meanwhile_is_passed_over(hatrack: Hatrack, reviews: Reviews) -> None:
    reviews.taken = "rev-1"
    result = hatrack("eval-1", stdin="1\n1\n2\n")
    assert result.exit_code == 0, result.output
    assert reviews.choices == {"rev-0": "first", "rev-1": "others", "rev-2": "second"}
    assert "Other reviewers have just made the last choices on this pair." in result.stdout
    assert "2 reviewed." in result.stdout


def test_starting_twice_is_told(hatrack: Hatrack, reviews: Reviews) -> None:
    assert json.loads(hatrack("eval-1", "--start", "--json").stdout)["judge"] is None
    result = hatrack("eval-1", "--start", stdin="1\n")
    assert result.exit_code == 1
    assert "`eval-1` already has pairs [reviews_exist]" in result.stderr
    assert list(reviews.choices.values()) == [None, None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start"], "--start needs EVALUATION"),
        (["eval-1", "--start", "--list"], "does not go with --list"),
        (["eval-1", "--pairs", "5"], "go with --start"),
        (["eval-1", "--start", "--reviewers", "6"], "less than or equal to 5"),
        (["--end"], "--end needs EVALUATION"),
        (["eval-1", "--end", "--start"], "does not go with --start"),
        (["eval-1", "--yes"], "--yes goes with --end"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    hatrack: Hatrack, reviews: Reviews, arguments: list[str], message: str
) -> None:
    result = hatrack(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert (reviews.created, reviews.ended) == ([], None)


def test_a_refusal_is_told(hatrack: Hatrack) -> None:
    result = hatrack("eval-2", stdin="1\n")
    assert result.exit_code == 1
    assert "there are no reviews of 'eval-2' [not_found]" in result.stderr


@pytest.mark.parametrize(("columns", "beside"), [("120", True), ("70", False)])
def test_at_a_terminal_a_key_is_enough(reviews: Reviews, columns: str, beside: bool) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"HATRACK_URL": reviews.url, "HATRACK_KEY": "hk-test", "COLUMNS": columns}
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "review"],
        env=environment | {"TERM": "dumb"},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.close(theirs)
    os.write(ours, b"12t")  # without a line feed
    try:
        shown, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 0, shown
    assert list(reviews.choices.values()) == ["first", "second", "tie"]
    tops = [line for line in shown.splitlines() if "─ 1 ─" in line]
    assert len(tops) == 3
    assert all(("─ 2 ─" in line) is beside for line in tops)
