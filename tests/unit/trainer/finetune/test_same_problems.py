"""One bad file is refused with the same list of problems wherever it is sent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from service.cli.main import app as cli
from tests.unit.service.files.files_app import ADMIN_KEY, FilesApp
from tests.unit.trainer.finetune.conftest import jsonl, rows
from tests.unit.trainer.finetune.test_worker import result, run
from trainer.data import check
from trainer.data.child_process import REFUSED
from trainer.errors import DataInvalid
from trainer.evaluate.evaluations.held_out import read_held_out
from trainer.finetune.spec import VALIDATE
from trainer.runs import control
from trainer.runs.protocol import DONE

GOOD = rows()
NOT_JSON = b'{\n\n[1]\n"\xff"\n{"prompt": NaN}\n{"prompt": "q", "prompt": "q"}\n'
BAD = jsonl(
    [
        {"promt": "q", "completion": "a"},
        GOOD[0],
        {"prompt": "q", "complettion": "a"},
        {"prompt": "q", "completion": " "},
        {"prompt": "q", "completion": ["a"]},
        {"messages": []},
        {"prompt": "q", "completion": "a", "tools": [1]},
    ]
) + NOT_JSON + jsonl([*GOOD, *[{"prompt": "q"}] * 11])  # fmt: skip
PROBLEMS = (
    "line 1: promt is not a known key; did you mean `prompt`?; "
    "line 3: complettion is not a known key; did you mean `completion`?; "
    "line 4: messages[1].content is empty; "
    "line 5: completion must be a string; "
    "line 6: the key `prompt` is missing, but the lines before have it; "
    "line 7: tools is not supported here: only the format with `messages` has tools; "
    "line 8: not JSON: Expecting property name enclosed in double quotes at character 2; "
    "line 9: the line is empty; "
    "line 10: not a JSON object; "
    "line 11: not UTF-8 at byte 2; "
    "line 12: not JSON: NaN; "
    "line 13: duplicate key 'prompt'; "
) + "".join(f"line {line}: completion must be a string; " for line in range(38, 46)) + "and 3 more"  # fmt: skip


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


@pytest.fixture
def gateway_url(tmp_path: Path) -> Iterator[str]:
    """A real server of `/v1/files`."""
    files_app = FilesApp(tmp_path)
    server = uvicorn.Server(uvicorn.Config(files_app.app(), log_level="error", ws="none"))

    async def serve(listening: socket.socket) -> None:
        async with files_app.run():
            await server.serve(sockets=[listening])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=asyncio.run, args=(serve(listening),))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_every_door_lists_the_same_problems(
    gateway_url: str,
    make_job: Any,
    base_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(BAD)
    monkeypatch.setenv("HATRACK_URL", gateway_url)
    monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)

    # the upload, by `hatrack train`, which sends nothing else once the file is refused
    trained = CliRunner().invoke(cli, ["train", str(file), "--name", "voice", "--from", "voice@1"])
    assert trained.exit_code == 1
    assert f"the training file cannot be used: {PROBLEMS} [invalid_training_file]" in trained.output

    # the data check
    assert check.main([str(file), "--base", str(base_dir)]) == REFUSED
    checked = json.loads(capsys.readouterr().out)
    assert (checked["code"], checked["message"]) == ("invalid_training_file", PROBLEMS)

    # the job, with the file as training and as validation file
    for number, (content, held_out, message) in enumerate(
        ((BAD, None, PROBLEMS), (None, BAD, f"held.jsonl: {PROBLEMS}"))
    ):
        folder = make_job(content, held_out, id=f"ftjob-{number}")
        assert run(folder, VALIDATE) == DONE
        failed = result(folder).error
        assert failed is not None
        assert failed.message == message

    # an evaluation's held-out file
    with pytest.raises(DataInvalid) as refused:
        read_held_out("bad.jsonl", BAD)
    assert refused.value.message == PROBLEMS
