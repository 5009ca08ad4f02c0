"""A scripted judge, as an OpenAI-compatible endpoint on a real socket: no model judges in the tests."""

from __future__ import annotations

import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tests.support.http import QuietHandler

KEY: Final = "sk-judge"
MODEL: Final = "scripted-1"
NAME: Final = "longest"
_ANSWERS: Final = re.compile(
    r"<answer_A-(\w+)>\n(.*?)\n</answer_A-\1>\n\n<answer_B-\1>\n(.*?)\n</answer_B-\1>", re.DOTALL
)


class ScriptedJudge(ThreadingHTTPServer):
    """Prefers the longer of two answers; `asked` holds the bodies of its requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def write_settings(self, folder: Path) -> Path:
        """The operator's file that names it."""
        (folder / "judge.key").write_text(KEY)
        path = folder / "endpoints.toml"
        path.write_text(
            f'[endpoints.script]\nurl = "{self.url}/v1"\nkey_file = "{folder / "judge.key"}"\nmodel = "{MODEL}"\n'
            f'[judges.{NAME}]\nendpoint = "script"\nmodel = "{MODEL}"\nrubric = "The better answer says more of it."\n'
        )
        return path


class _Handler(QuietHandler):
    server: ScriptedJudge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = self.path == "/v1/chat/completions" and self.headers["authorization"] == f"Bearer {KEY}"
        self.server.asked.append(body)
        match = _ANSWERS.search(body["messages"][-1]["content"])
        first, second = (match[2], match[3]) if match else ("", "")
        better = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"
        message = {"role": "assistant", "content": f'One says more.\n{{"better": "{better}"}}'}
        content = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}).encode()
        self.send_response(200 if known else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
