"""The default base model, converted from its package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND_TIMEOUT_S = 600.0


def start(dest: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.base_model", "--dest", str(dest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_after_a_kill_two_concurrent_conversions_make_the_base_model_once(tmp_path: Path) -> None:
    killed = start(tmp_path)
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    partial = tmp_path / ".smollm2-135m-instruct.partial"
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=COMMAND_TIMEOUT_S)
    assert partial.exists()
    assert not (tmp_path / "smollm2-135m-instruct").exists()

    both = [start(tmp_path), start(tmp_path)]
    answers = [process.communicate(timeout=COMMAND_TIMEOUT_S) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    paths = {json.loads(out.splitlines()[-1])["path"] for out, _ in answers}
    assert paths == {str(tmp_path / "smollm2-135m-instruct")}
    assert sorted("converting" in err for _, err in answers) == [False, True]
    assert not partial.exists()
    template = (tmp_path / "smollm2-135m-instruct" / "chat_template.jinja").read_text()
    assert "<|im_start|>" in template
