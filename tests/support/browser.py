"""Chromium without a window, driven over the DevTools protocol with the `websockets` that uvicorn brings."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.system import program

START_S: Final = 300.0
"""For a command to the browser, its start, or a change of the page: much, since it costs nothing where it is fast."""
KEY_CODES: Final = {"Tab": 9, "Escape": 27}
"""Of the keys that type nothing."""
FLAGS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-port=0"),
)


class BrowserFailure(AssertionError):
    """The page did not do what a test waits for; the message has what it shows instead."""


class Browser:
    """One tab. `problems` collects the errors that the browser logged: exceptions, failed loads, policy violations.

    Args:
        connection: The DevTools connection of the tab.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a DevTools command and wait for its answer."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=START_S))
            self._note(message)
            if message.get("id") == self._number:
                if "error" in message:
                    raise BrowserFailure(f"{method}: {message['error']}")
                answer: dict[str, Any] = message["result"]
                return answer

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.problems.append(" ".join(str(each.get("value", each)) for each in params["args"]))

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserFailure(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    @property
    def text(self) -> str:
        """What the page shows."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait(self, script: str, within_s: float = START_S) -> None:
        """Wait until a JavaScript expression is true. Raises BrowserFailure."""
        deadline = time.monotonic() + within_s
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > deadline:
                raise BrowserFailure(f"not within {within_s} s: {script}\n{self.text}\n{self.problems}")
            time.sleep(0.1)

    def wait_for_text(self, text: str, within_s: float = START_S) -> None:
        """Wait until the page shows a text."""
        self.wait(f"document.body?.innerText.includes({json.dumps(text)})", within_s)

    def fill(self, selector: str, value: str) -> None:
        """Type into the field of a selector, as a person would: with the events that the page listens to."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.run(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.focus(); "
            f"field.value = {json.dumps(value)}; "
            "field.dispatchEvent(new Event('input', {bubbles: true})); "
            "field.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def fill_labelled(self, label: str, value: str) -> None:
        """Type into the field whose label begins with a text."""
        self.run(
            "[...document.querySelectorAll('label')]"
            f".find((each) => each.innerText.startsWith({json.dumps(label)})).control.dataset.test = 'labelled'"
        )
        self.fill("[data-test=labelled]", value)
        self.run("delete document.querySelector('[data-test=labelled]').dataset.test")

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        code = KEY_CODES.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            text = {} if code or kind == "keyUp" else {"text": key}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def click_labelled(self, label: str) -> None:
        """Click the button that a screen reader calls so; waits until there is one."""
        button = f"document.querySelector({json.dumps(f'button[aria-label={json.dumps(label)}]')})"
        self.wait(button)
        self.run(f"{button}.click()")

    def click(self, text: str, within: str = "body") -> None:
        """Click the first enabled button or link that shows a text; waits until there is one."""
        found = (
            f"[...document.querySelectorAll({json.dumps(within)} + ' :is(button, a, summary)')]"
            f".find((each) => each.innerText.trim() === {json.dumps(text)} && !each.disabled)"
        )
        self.wait(found)
        self.run(f"{found}.click()")

    def attach(self, selector: str, *files: Path) -> None:
        """Choose files in a file input, as the dialog of the browser would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, selector: str, *files: Path) -> None:
        """Drag files and folders over the middle of an element and drop them there."""
        box = self.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, data=data, **at)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window and the colour scheme that the system prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.prefer(dark=dark)

    def prefer(self, *, dark: bool) -> None:
        """Set the colour scheme that the system prefers."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the whole page, however long it is."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh Chromium with one tab; it is ended, and its profile deleted, afterwards."""
    chromium = program("chromium", "chromium-browser", "google-chrome")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(profile) / "DevToolsActivePort", process)
            with connect(_tab(port), max_size=None, open_timeout=START_S) as connection:
                yield Browser(connection)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that Chromium chose; it writes it once it listens."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return int(lines[0])
        time.sleep(0.1)
    raise BrowserFailure(f"Chromium did not start within {START_S} s; exit code {process.poll()}")


def _tab(port: int) -> str:
    with httpx.Client(trust_env=False) as client:
        tabs = client.get(f"http://127.0.0.1:{port}/json").json()
    return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
