"""kill -9 of gateway, agents and fronts while clients write through the fronts: what was acknowledged is there."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx

from adapters.base import describe
from loadtests.fronts.installation import Installation
from tests.support.adapters import make_adapter
from tests.support.cluster import ENGINES, is_ready, until

NAME = "promoted-under-kills"
EXPLAINED = {"engine_cut", "engine_unavailable", "gateway_cut", "gateway_unavailable", "no_answer", "stopping"}
"""What a kill may be answered with."""
PAUSE_S = 0.02


class Writers:
    """Three clients: one pushes adapters, one moves an alias, one makes keys; each asks the fronts in turn."""

    def __init__(self, made: Installation) -> None:
        self._made = made
        self._about = describe(
            made.cluster.base_dir, served_name="x", dtype="bfloat16", quantization=None, engine_version="0"
        )
        self._ends = threading.Event()
        self._numbers = iter(range(10**9))
        self.pushed: list[str] = []
        self.keys: list[str] = []
        self.live = 1
        """The version that was acknowledged last."""
        self.maybe_live = 1
        """The one that was asked for last."""
        self.moved = 0
        self.refused: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write while this is open."""
        threads = [threading.Thread(target=self._repeat, args=(work,)) for work in (self._push, self._move, self._key)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ends.set()
            for thread in threads:
                thread.join()

    def _repeat(self, work: Callable[[httpx.Client, int], None]) -> None:
        while not self._ends.is_set():
            number = next(self._numbers)
            try:
                with self._made.cluster.front(number % 2) as http:
                    work(http, number)
            except httpx.TransportError:
                self.refused["transport"] += 1
            time.sleep(PAUSE_S)

    def _is_acknowledged(self, answer: httpx.Response) -> bool:
        if answer.is_success:
            return True
        with suppress(ValueError, KeyError, TypeError):
            self.refused[str(answer.json()["error"]["code"])] += 1
            return False
        self.refused[f"status {answer.status_code}"] += 1
        return False

    def _push(self, http: httpx.Client, number: int) -> None:
        name, folder = f"pushed-{number}", self._made.cluster.home / "made" / f"kill-{number}"
        make_adapter(folder, self._about, seed=1000 + number, scale=0.02)
        files = {
            "config": ("adapter_config.json", (folder / "adapter_config.json").read_bytes()),
            "weights": ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes()),
        }
        if self._is_acknowledged(http.post("/v1/adapters", data={"name": name}, files=files)):
            self.pushed.append(name)

    def _move(self, http: httpx.Client, _number: int) -> None:
        self.maybe_live = 3 - self.live
        if self._is_acknowledged(http.put(f"/v1/adapters/{NAME}/aliases/live", json={"version": self.maybe_live})):
            self.live, self.moved = self.maybe_live, self.moved + 1

    def _key(self, http: httpx.Client, number: int) -> None:
        answer = http.post("/v1/keys", json={"name": f"key-{number}", "scopes": ["infer"]})
        if self._is_acknowledged(answer):
            self.keys.append(answer.json()["key"])


def measure(made: Installation, kills: int, seed: int) -> list[str]:
    """Print what was acknowledged; returns what is wrong."""
    made.push(NAME, NAME)
    rng, writers, killed = random.Random(seed), Writers(made), Counter[str]()
    with made.cluster.gateway.http() as http:
        assert http.put(f"/v1/adapters/{NAME}/aliases/live", json={"version": 1}).is_success
    with writers.running():
        for _ in range(kills):
            before = len(writers.keys)
            until(lambda before=before: len(writers.keys) > before)  # type: ignore[misc]
            time.sleep(rng.uniform(0.0, 1.0))
            killed[_kill(made, rng)] += 1
    faults = [*_missing(made, writers), *(code for code in writers.refused if code not in {*EXPLAINED, "transport"})]
    print(f"{kills} kills: {dict(killed)}; refused: {dict(writers.refused)}")
    print(f"acknowledged: {len(writers.pushed)} pushes, {writers.moved} promotions, {len(writers.keys)} keys")
    print(f"wrong: {faults or 'nothing'}")
    return faults


def _kill(made: Installation, rng: random.Random) -> str:
    """Kill one process and start it again; returns which kind it was."""
    cluster, what = made.cluster, rng.choice(("gateway", "agent", "front"))
    if what == "gateway":
        cluster.gateway.kill()
        time.sleep(rng.uniform(0.0, 1.0))
        cluster.restart_gateway()
    elif what == "agent":
        name = rng.choice(ENGINES)
        cluster.agents[name].kill()
        cluster.agents[name].start()
        cluster.until_agent_ready(name)
    else:
        front = rng.choice(cluster.fronts)
        front.kill()
        front.start()
        until(lambda: is_ready(front.port), front)
    return what


def _missing(made: Installation, writers: Writers) -> list[str]:
    """What was acknowledged and is not there, or is there otherwise."""
    faults = []
    with made.cluster.gateway.http() as http:
        for name in writers.pushed:
            versions = http.get(f"/v1/adapters/{name}").json().get("versions", [])
            if [version["state"] for version in versions] != ["ready"]:
                faults.append(f"{name} is {versions}")
        live = http.get(f"/v1/adapters/{NAME}").json()["aliases"]["live"]
        if live not in (writers.live, writers.maybe_live):
            faults.append(f"live is {live}, and {writers.live} was acknowledged")
    for front in range(2):
        # one that has not heard yet of the gateway's new start does not know the latest keys
        until(lambda front=front: _status(made, front, writers.keys[-1]) == 200)  # type: ignore[misc]
        statuses = Counter(_status(made, front, key) for key in writers.keys)
        faults += [f"{count} keys are answered with {status}" for status, count in statuses.items() if status != 200]
    return faults


def _status(made: Installation, front: int, key: str) -> int:
    """Of a request with a key at a front."""
    with made.cluster.front(front, key) as http:
        body = {"model": NAME, "prompt": "Hello", "max_tokens": 1}
        return http.post("/v1/completions", json=body).status_code
