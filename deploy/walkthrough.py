"""`make walkthrough`: from 1,000 replies to a voice that is live, with facts from a store that change.

    .venv/bin/python deploy/walkthrough.py                 every step, with a gateway of its own under var/walkthrough
    .venv/bin/python deploy/walkthrough.py policy fence    these steps alone, on what is there

Each step prints the `hatrack` commands that it runs: the same can be typed. With a gateway at HATRACK_URL (and its key
in HATRACK_KEY) the steps run there; otherwise one is started, and stopped at the end. A step that needs a voice takes
`marlow` if it is there, and otherwise makes it of the base with a prompt, in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

NAME: Final = "marlow"
POLICIES: Final = "marlow-policies"
ORDERS: Final = "marlow-orders"
DESK: Final = "marlow-desk"
"""Answers about orders only for a customer who is named."""
REPO: Final = Path(__file__).resolve().parents[1]
SAMPLES: Final = REPO / "trainer" / "samples" / NAME
TRAINING, HELD_OUT = SAMPLES / "training.jsonl", SAMPLES / "heldout.jsonl"
QUESTION: Final = "What's the last day for a wrapped parcel before Christmas?"
OLD, NEW = "17 December", "12 December"
"""The policy that changes, in `store/policies/gift-wrapping.md`."""
FENCED: Final = "When is MT-82310 expected? It has not come."
OWNER, STRANGER = "c-1003", "c-1001"
SHOWN_TICKETS: Final = 3
GREEDY: Final = ("--temperature", "0", "--max-tokens", "120")
READY_S: Final = 900.0


class Walkthrough:
    """Runs `hatrack` commands and shows them.

    Args:
        environment: With the gateway's URL and key.
        directory: For files that the steps change.
    """

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment = environment
        self.directory = directory

    def run(self, *arguments: str, answers: Sequence[int] = (0,)) -> None:
        """Run a command with its output on the terminal. Raises SystemExit for another exit code than ``answers``."""
        print(f"\n$ hatrack {shlex.join(arguments)}", flush=True)
        code = subprocess.run([*HATRACK, *arguments], env=self._environment, check=False).returncode
        if code not in answers:
            raise SystemExit(f"hatrack {arguments[0]} ended with exit code {code}")

    def read(self, *arguments: str) -> Any:
        """The JSON that a command prints; None for what does not exist. Raises SystemExit for any other failure."""
        ran = subprocess.run([*HATRACK, *arguments, "--json"], env=self._environment, check=False, capture_output=True)
        if ran.returncode == 0:
            return json.loads(ran.stdout)
        if b"not_found" in ran.stderr:
            return None
        raise SystemExit(f"hatrack {shlex.join(arguments)}: {ran.stderr.decode(errors='replace')}")

    def has_store(self, name: str) -> bool:
        """Whether there is a vector store of this name."""
        return any(store["name"] == name for store in self.read("kb", "list"))

    def require_voice(self) -> None:
        """Make `marlow` of the base with a prompt, unless there is one."""
        if self.read("show", NAME) is None:
            self.run("push", NAME, "--system-prompt", str(SAMPLES / "instructions.txt"))

    def require_policies(self, directory: Path) -> None:
        """Put the policies of a directory into the store, which is made if need be."""
        if not self.has_store(POLICIES):
            self.run("kb", "create", POLICIES)
        self.run("kb", "add", POLICIES, str(directory))


HATRACK: Final = (sys.executable, "-m", "service.cli")


def report(walk: Walkthrough) -> None:
    """What is in the data, before anything is spent on it."""
    walk.run("data", "check", str(TRAINING))


def advise(walk: Walkthrough) -> None:
    """Is fine-tuning worth it at all? Prompts, examples and retrieval first, each measured."""
    page = walk.directory / "advice.html"
    walk.run("advise", str(TRAINING), "--name", NAME, "--quick", "--html", str(page), answers=(0, 4))


def train(walk: Walkthrough) -> None:
    """A LoRA on all 1,000 replies, judged on 150 tickets of themes that it has not seen; `live` moves if it passes."""
    walk.run(
        "train", str(TRAINING), "--name", NAME, "--held-out", str(HELD_OUT), "--promote", "auto", answers=(0, 1, 4)
    )


def live(walk: Walkthrough) -> None:
    """The newest version is live: by its verdict, or by hand, which is said."""
    walk.require_voice()
    shown = walk.read("show", NAME)
    version = newest(shown["versions"])
    label = f"{NAME}@{version['version']}"
    if shown["aliases"].get("live") == version["version"]:
        print(f"\n# {label} is live already", flush=True)
    else:
        verdict = "It was never judged." if version["verdict"] is None else version["verdict"]["sentence"]
        print(f"\n# {label} is not live. {verdict}\n# Here it is moved by hand, to show the voice in the next steps.")
        walk.run("promote", label, *(("--force",) if version["held_back"] else ()))
    walk.run("ls")


def newest(versions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The newest version that is meant to stay: a job's checkpoints come after its result, and expire."""
    return max((each for each in versions if each["expires_at"] is None), key=lambda each: int(each["version"]))


def policy(walk: Walkthrough) -> None:
    """The facts come from a store: a policy changes, and so does the next answer, in the same voice."""
    walk.require_voice()
    policies = walk.directory / "policies"
    shutil.rmtree(policies, ignore_errors=True)
    shutil.copytree(SAMPLES / "store" / "policies", policies)
    walk.require_policies(policies)
    ask = ("chat", NAME, "--kb", POLICIES, *GREEDY, QUESTION)
    walk.run(*ask)
    page = policies / "gift-wrapping.md"
    page.write_text(page.read_text("utf-8").replace(OLD, NEW), "utf-8")
    print(f"\n# {page.name} now says {NEW} where it said {OLD}", flush=True)
    walk.require_policies(policies)
    walk.run(*ask)


def fence(walk: Walkthrough) -> None:
    """Orders are fenced by customer: nobody gets anything of another's, and without a customer there is no answer."""
    walk.require_voice()
    if not walk.has_store(ORDERS):
        walk.run("kb", "create", ORDERS)
    walk.run("kb", "add", ORDERS, str(SAMPLES / "store" / "orders"))
    for customer in (OWNER, STRANGER):
        about = f"customer={customer}"
        walk.run("chat", NAME, "--kb", ORDERS, "--filter", about, *GREEDY, FENCED)
    prompt = ("--system-prompt", str(SAMPLES / "instructions.txt"))
    walk.run("push", DESK, *prompt, "--kb", ORDERS, "--required-filter", "customer")
    walk.run("chat", DESK, *GREEDY, FENCED, answers=(1,))


def compare(walk: Walkthrough) -> None:
    """The base and the voice, side by side on tickets that were held out."""
    walk.require_voice()
    base = walk.read("status")["readiness"]["base"]
    for line in HELD_OUT.read_text("utf-8").splitlines()[:SHOWN_TICKETS]:
        ticket = json.loads(line)["messages"][0]["content"]
        for model in (base, NAME):
            walk.run("chat", model, *GREEDY, ticket)


def cost(walk: Walkthrough) -> None:
    """What it has cost so far, and what it will cost in a year."""
    walk.run("cost")
    walk.run("cost", "--year", NAME)


STEPS: Final[dict[str, Callable[[Walkthrough], None]]] = {
    "report": report,
    "advise": advise,
    "train": train,
    "live": live,
    "policy": policy,
    "fence": fence,
    "compare": compare,
    "cost": cost,
}


@contextmanager
def gateway(home: Path) -> Iterator[dict[str, str]]:
    """The environment of a gateway's client: of the one at HATRACK_URL, or of one that runs meanwhile."""
    environment = dict(os.environ)
    if "HATRACK_URL" in environment:
        yield environment
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment |= {"HATRACK_HOME": str(home), "HATRACK_PORT": str(port), "HATRACK_URL": f"http://127.0.0.1:{port}"}
    environment.setdefault("HATRACK_BASE_MODEL", str(prepared_base()))
    home.mkdir(parents=True, exist_ok=True)
    with (home / "gateway.log").open("ab") as log:
        server = subprocess.Popen([*HATRACK, "serve", "--trainer"], env=environment, stdout=log, stderr=log)
    print(f"starting a gateway on port {port}; its log is {home / 'gateway.log'}", flush=True)
    try:
        wait_ready(server, environment["HATRACK_URL"])
        environment["HATRACK_KEY"] = (home / "admin.key").read_text().strip()
        yield environment
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def prepared_base() -> Path:
    """The packaged base, prepared under var/ if it is not there."""
    target = REPO / "var" / "base"
    command = [sys.executable, "-m", "trainer.base_model", "--source", "smollm2-135m-instruct", "--dest", str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (target / "smollm2-135m-instruct").resolve()


def wait_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the gateway answers. Raises SystemExit if it ends, or takes too long."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the gateway ended with exit code {server.returncode}; see its log")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"the gateway was not ready after {READY_S:.0f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the steps that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)} [default: all]")
    parser.add_argument(
        "--home", type=Path, default=REPO / "var" / "walkthrough", help="of the gateway that is started"
    )
    options = parser.parse_args(arguments)
    unknown = [step for step in options.steps if step not in STEPS]
    if unknown:
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    home = options.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    with gateway(home) as environment:
        walk = Walkthrough(environment, home)
        for step in options.steps or STEPS:
            what = STEPS[step].__doc__ or ""
            print(f"\n── {step}: {what}", flush=True)
            STEPS[step](walk)


if __name__ == "__main__":
    main()
