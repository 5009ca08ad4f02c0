"""The room that is taken by what is not listed yet: by uploads, so that many at once do not write many times what a
project may have before the first is refused, and by the results of batches that run."""

from __future__ import annotations

from collections.abc import Callable


class Reservation:
    """The bytes that one upload may write, or one batch has written.

    Args:
        running: Those of the same project.
        size: In bytes.
        on_empty: Called when it was the last one.
        is_written: They are on the disk, and not only what may come to it.
    """

    def __init__(
        self, running: dict[Reservation, int], size: int, on_empty: Callable[[], object], *, is_written: bool
    ) -> None:
        self.is_written = is_written
        self._earlier = tuple(running)
        self._running = running
        self._on_empty = on_empty
        running[self] = size

    @property
    def earlier_bytes(self) -> int:
        """What those that began before this one, and have not ended, may write."""
        return sum(self._running.get(each, 0) for each in self._earlier)

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._running[self]

    @property
    def other_bytes(self) -> int:
        """Those of all others."""
        return sum(self._running.values()) - self.size

    def resize(self, size: int) -> None:
        """Count ``size`` bytes from now on."""
        self._running[self] = size

    def release(self) -> None:
        """It has ended: its file is listed, or gone."""
        del self._running[self]
        if not self._running:
            self._on_empty()


class Reservations:
    """Those of all projects. For one event loop."""

    def __init__(self) -> None:
        self._projects: dict[str, dict[Reservation, int]] = {}

    def reserve(self, project: str, size: int, *, is_written: bool = False) -> Reservation:
        """Count ``size`` bytes against what begins after this one in the project."""
        running = self._projects.setdefault(project, {})
        return Reservation(running, size, lambda: self._projects.pop(project), is_written=is_written)

    def written_bytes(self, project: str) -> int:
        """What is on the disk already."""
        return sum(size for each, size in self._projects.get(project, {}).items() if each.is_written)
