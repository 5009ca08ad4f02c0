"""What changes under the requests: versions, aliases, adapters, and the engine."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from threading import Event
from typing import Final

import httpx
import psutil

from loadtests.churn.adapters import ABSENT, Adapter, AdapterMaker
from tests.support.gateway import Gateway
from tests.support.processes import running
from tests.support.waiting import wait_until

PAUSE_S: Final = 0.1
DOWN: Final = frozenset({500, 502, 503, 504})


class Changes:
    """Uploads with promotions, rollbacks, and deletions with new uploads, of one adapter after the other.

    Args:
        gateway: Whom to ask.
        adapters: Those that change.
        maker: Makes new versions.
    """

    def __init__(self, gateway: Gateway, adapters: Sequence[Adapter], maker: AdapterMaker, seed: int) -> None:
        self._gateway, self._adapters, self._maker = gateway, adapters, maker
        self._random = random.Random(seed)
        self.made: Counter[str] = Counter()
        """Changes by kind."""
        self.surprises: Counter[str] = Counter()

    def run(self, stop: Event) -> None:
        """Change until ``stop`` is set."""
        kinds = (self._promote, self._promote, self._promote, self._roll_back, self._roll_back, self._replace)
        with self._gateway.http() as http:
            while not stop.is_set():
                change = self._random.choice(kinds)
                # those whose new first version met the engine's end come first, or in the end none would be there
                absent = [adapter for adapter in self._adapters if adapter.possible == {ABSENT}]
                adapter = self._random.choice(absent or self._adapters)
                if absent:
                    change = self._promote
                refused = change(http, adapter)
                if refused is None:
                    self.made[change.__name__.strip("_")] += 1
                else:
                    if refused.status_code not in DOWN:
                        self.surprises[f"{change.__name__}: {refused.status_code} {refused.text[:300]}"] += 1
                    adapter.became(self._maker.live_word(http, adapter.name))
                time.sleep(PAUSE_S)

    def _promote(self, http: httpx.Client, adapter: Adapter) -> httpx.Response | None:
        """A new version goes live; the answer if it was refused."""
        word, pushed = self._maker.push_next(adapter.name)
        if pushed.status_code != httpx.codes.CREATED:
            return pushed
        adapter.may_become(word)
        moved = http.put(f"/v1/adapters/{adapter.name}/aliases/live", json={"version": pushed.json()["version"]})
        if moved.status_code != httpx.codes.OK:
            return moved
        adapter.became(word)
        return None

    def _roll_back(self, http: httpx.Client, adapter: Adapter) -> httpx.Response | None:
        """The version before goes live again, where there is one."""
        adapter.may_become(*set(adapter.log))
        moved = http.post(f"/v1/adapters/{adapter.name}/aliases/live/rollback")
        if moved.status_code == httpx.codes.CONFLICT and moved.json()["error"]["code"] == "no_earlier_version":
            adapter.became(self._maker.live_word(http, adapter.name))
            return None
        if moved.status_code != httpx.codes.OK:
            return moved
        adapter.became(self._maker.word_of(http, adapter.name, moved.json()["version"]))
        return None

    def _replace(self, http: httpx.Client, adapter: Adapter) -> httpx.Response | None:
        """The adapter is deleted with all its versions, and another one is pushed under its name."""
        adapter.may_become(ABSENT)
        deleted = http.delete(f"/v1/adapters/{adapter.name}", params={"force": "true"})
        if deleted.status_code != httpx.codes.NO_CONTENT:
            return deleted
        adapter.became(ABSENT)
        return self._maker.push_first(adapter)


class EngineKiller:
    """kill -9 of the engine, and the time until there is another.

    Args:
        gateway: Whose engine.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.kills = 0
        self.epoch = 0
        """Odd while there is no engine; a request that saw one number throughout met no kill."""

    def kill(self) -> None:
        """Kill it, and return when the next one answers."""
        old = self._gateway.engine_server()
        self.epoch += 1
        old.kill()
        self.kills += 1
        wait_until(lambda: not running([old]), "the engine lives on")
        wait_until(lambda: self._is_new(old.pid), "no new engine was started", timeout_s=600)
        self._gateway.wait_ready()
        self.epoch += 1

    def _is_new(self, former: int) -> bool:
        try:
            return self._gateway.engine_server().pid != former
        except (OSError, ValueError, psutil.Error):  # between two engines there is no record, or the former one's
            return False
