"""Questions from files, from a hub, from the package; and from nowhere where nobody named a place."""

from __future__ import annotations

import csv
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.http import QuietHandler
from trainer.errors import SuiteUnavailable
from trainer.evaluate.suites import data
from trainer.evaluate.suites.data import DataSources, MmluQuestion, gsm8k, mmlu, packaged_mmlu, sample


def choice(at: int, subject: str = "anatomy") -> dict[str, Any]:
    return {"question": f"q{at}?", "choices": ["a", "b", "c", "d"], "answer": at % 4, "subject": subject}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_mmlu_in_the_hubs_fields(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "mmlu" / "test.jsonl", [choice(at, subject) for at in range(3) for subject in ("law", "art")]
    )
    write_lines(tmp_path / "mmlu" / "dev.jsonl", [choice(at, "law") for at in range(2)])
    found = mmlu(DataSources(tmp_path, None))
    assert len(found.test) == 6
    assert {subject: len(shots) for subject, shots in found.dev.items()} == {"law": 2}
    assert found.source == "test questions"


def test_mmlu_in_its_original_files(tmp_path: Path) -> None:
    for kind in ("test", "dev"):
        path = tmp_path / "mmlu" / kind / f"world_religions_{kind}.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(["Who, and\nwhen?", "one", "two", "three", "four", "C"])
    found = mmlu(DataSources(tmp_path, None))
    (question,) = found.test
    assert question == MmluQuestion(
        question="Who, and\nwhen?", choices=("one", "two", "three", "four"), answer=2, subject="world_religions"
    )
    assert found.dev == {"world_religions": (question,)}


def test_without_a_directory_mmlu_is_what_the_harness_ships(tmp_path: Path) -> None:
    found = mmlu(DataSources(None, None))
    assert len(found.test) == len(packaged_mmlu()) == 281
    assert found.dev == {}
    assert "not here" in found.source
    assert len({question.subject for question in found.test}) == 57
    anatomy = next(question for question in found.test if "pituitary gland" in question.question)
    assert anatomy.choices == ("Abdominal", "Cranial", "Pleural", "Spinal")
    assert anatomy.answer == 1


def test_gsm8k_as_its_authors_publish_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "gsm8k" / "test.jsonl", [{"question": "1 + 1?", "answer": "It is <<1+1=2>>2\n#### 2"}])
    assert [problem.answer[-1] for problem in gsm8k(DataSources(tmp_path, None)).test] == ["2"]


def test_gsm8k_without_data_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(SuiteUnavailable, match="HATRACK_TRAINER_SUITES_DIR"):
        gsm8k(DataSources(tmp_path, None))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gsm8k/test.jsonl", "no JSON"),
        ("gsm8k/test.jsonl", '{"question": "1 + 1?"}'),
        ("gsm8k/test.jsonl", '{"question": "1 + 1?", "answer": "two"}'),
        ("gsm8k/test.parquet", "no parquet"),
        ("mmlu/test.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": 0, "subject": "s"}'),
        ("mmlu/test.jsonl", '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 4, "subject": "s"}'),
        ("mmlu/test/law_test.csv", "q,a,b,c,d,E"),
        ("mmlu/test/law_test.csv", "q,a,b,c,d,"),
        ("mmlu/test/law_test.csv", "q,a,b,c,d,BCD"),
        ("mmlu/test/law_test.csv", "q,a,b"),
    ],
)
def test_files_that_are_none_are_refused_by_name(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    suite, _, rest = name.partition("/")
    with pytest.raises(SuiteUnavailable, match=f"{suite}/{rest[:4]}"):
        (gsm8k if suite == "gsm8k" else mmlu)(DataSources(tmp_path, None))


def test_a_sample_is_always_the_same_and_in_order() -> None:
    drawn = sample(range(1000), 100)
    assert drawn == sample(range(1000), 100) == sorted(drawn)
    assert len(set(drawn)) == 100
    assert sample(range(5), 100) == [0, 1, 2, 3, 4]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A hub with GSM8K's file; and the paths that it is asked for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever this machine's settings say
    asked: list[str] = []
    table = pyarrow.Table.from_pylist([{"question": "1 + 2?", "answer": "#### 3"}])
    pyarrow.parquet.write_table(table, tmp_path / "hub.parquet")
    content = (tmp_path / "hub.parquet").read_bytes()

    class Handler(QuietHandler):
        def answer(self, *, body: bool) -> None:
            asked.append(self.path)
            there = self.path.endswith("/openai/gsm8k/resolve/main/main/test-00000-of-00001.parquet")
            self.send_response(200 if there else 404)
            self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("x-repo-commit", "0" * 40)
            self.send_header("content-length", str(len(content) if there else 0))
            self.end_headers()
            if body and there:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_that_the_settings_name_gives_what_the_directory_lacks(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, asked = hub
    found = gsm8k(DataSources(tmp_path / "none", url, tmp_path / "cache"))
    assert [problem.question for problem in found.test] == ["1 + 2?"]
    assert asked
    with pytest.raises(SuiteUnavailable, match=f"cannot download .* from {url}"):
        mmlu(DataSources(None, url, tmp_path / "cache"))


def test_the_directory_goes_before_the_hub(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = hub
    write_lines(tmp_path / "gsm8k" / "test.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    assert [problem.question for problem in gsm8k(DataSources(tmp_path, url)).test] == ["1 + 1?"]
    assert asked == []


def test_without_a_hub_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("somebody went out")

    monkeypatch.setattr(socket.socket, "connect", refused)
    assert len(mmlu(DataSources(None, None)).test) == 281
    with pytest.raises(SuiteUnavailable):
        gsm8k(DataSources(None, None))


def test_the_packages_pages_are_read_without_running_what_they_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks" / "mmlu" / "flan_cot_fewshot"
    folder.mkdir(parents=True)
    (folder / "mmlu_evil.yaml").write_text("dataset_name: !function evil.run\n")
    monkeypatch.setattr(data, "files", lambda _: tmp_path)
    with pytest.raises(SuiteUnavailable, match="!function"):
        packaged_mmlu()
