"""Writes of the registry: versions, aliases, splits, pins, deletions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from loadtests.full_disk.state import ANYTHING, GONE, Changes, State
from loadtests.full_disk.writes import VOICE, Workbench, Write, audited, created, moved
from service.client.wire import ClientError

CANARY, OLD = "canary", "old"


class RegistryWrites:
    """One method for each kind of request; it prepares what the request needs."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._adapters = bench, bench.client.adapters
        for _ in range(2):
            self._push()
        self._adapters.split(VOICE, {1: 50, 2: 50}, CANARY)

    def all(self) -> Sequence[Callable[[], Write]]:
        """The kinds."""
        return (
            self.version, self.adapter, self.promotion, self.rollback, self.split, self.alias, self.alias_deletion,
            self.pin, self.unpin, self.version_deletion, self.adapter_deletion,
        )  # fmt: skip

    def _push(self) -> int:
        return self._adapters.push(VOICE, self._bench.adapter().directory)["version"]

    def _live(self) -> int:
        live = self._adapters.retrieve(VOICE)["aliases"]["live"]
        assert live is not None
        return live

    def version(self) -> Write:
        """An upload of a further version, with an alias for it."""
        made = self._bench.adapter()
        return Write(
            lambda: self._adapters.push(VOICE, made.directory, alias="candidate"),
            lambda before, answer: {
                ("version", f"{VOICE}@{answer['version']}"): "ready",
                **moved(before, VOICE, "candidate", answer["version"]),
                **audited(before, "adapter.push", "alias.promote"),
            },
        )

    def adapter(self) -> Write:
        """An upload of the first version of an adapter, which goes live."""
        made, name = self._bench.adapter(), self._bench.name("fresh")
        for earlier in [adapter["name"] for adapter in self._adapters.list()]:
            if earlier.startswith("fresh"):
                self._adapters.delete(earlier, force=True)
        return Write(
            lambda: self._adapters.push(name, made.directory),
            lambda before, _: {
                **created(("adapter", name), ("model", name)),
                ("pin", name): False,
                ("version", f"{name}@1"): "ready",
                **moved(before, name, "live", 1),
                **audited(before, "adapter.push", "alias.promote"),
            },
        )

    def promotion(self) -> Write:
        """`live` to the other version."""
        target = 3 - self._live()
        return Write(
            lambda: self._adapters.promote(f"{VOICE}@{target}"),
            lambda before, _: {**moved(before, VOICE, "live", target), **audited(before, "alias.promote")},
        )

    def rollback(self) -> Write:
        """`live` back to where it was."""
        earlier = self._live()
        self._adapters.promote(f"{VOICE}@{3 - earlier}")
        return Write(
            lambda: self._adapters.rollback(VOICE),
            lambda before, _: {**moved(before, VOICE, "live", earlier), **audited(before, "alias.rollback")},
        )

    def split(self) -> Write:
        """Other weights for a split alias."""
        weight = self._bench.number()
        return Write(
            lambda: self._adapters.split(VOICE, {1: weight, 2: 1000}, CANARY),
            lambda before, _: {
                **moved(before, VOICE, CANARY, {"1": weight, "2": 1000}),
                **audited(before, "alias.split"),
            },
        )

    def alias(self) -> Write:
        """An alias that was not there."""
        alias = "new"
        with suppress(ClientError):
            self._adapters.delete_alias(VOICE, alias)
        return Write(
            lambda: self._adapters.promote(f"{VOICE}@1", alias),
            lambda before, _: {
                **moved(before, VOICE, alias, 1),
                ("moves", f"{VOICE}:{alias}"): ANYTHING,  # those of its earlier lives count
                **audited(before, "alias.promote"),
            },
        )

    def alias_deletion(self) -> Write:
        """An alias that goes."""
        self._adapters.promote(f"{VOICE}@1", OLD)
        label = f"{VOICE}:{OLD}"
        return Write(
            lambda: self._adapters.delete_alias(VOICE, OLD),
            lambda before, _: {
                **{(kind, label): GONE for kind in ("alias", "moves", "served")},
                **audited(before, "alias.delete"),
            },
        )

    def pin(self) -> Write:
        """A pin."""
        self._adapters.unpin(VOICE)
        return Write(
            lambda: self._adapters.pin(VOICE),
            lambda before, _: {("pin", VOICE): True, **audited(before, "adapter.pin")},
        )

    def unpin(self) -> Write:
        """No pin any more."""
        self._adapters.pin(VOICE)
        return Write(
            lambda: self._adapters.unpin(VOICE),
            lambda before, _: {("pin", VOICE): False, **audited(before, "adapter.unpin")},
        )

    def version_deletion(self) -> Write:
        """A version that no alias points to."""
        label = f"{VOICE}@{self._push()}"
        return Write(
            lambda: self._adapters.delete(label),
            lambda before, _: {("version", label): GONE, **audited(before, "version.delete")},
        )

    def adapter_deletion(self) -> Write:
        """An adapter with two versions and a live one."""
        name = self._bench.name("adapter")
        for _ in range(2):
            self._adapters.push(name, self._bench.adapter().directory)

        def changes(before: State, _: object) -> Changes:
            gone = {place: GONE for place in before if place[1].partition(":")[0].partition("@")[0] == name}
            return {**gone, **audited(before, "adapter.delete")}

        return Write(lambda: self._adapters.delete(name, force=True), changes)
