"""The room that uploads in progress may still take, so that many at once do not write many times what a project may
have before the first is refused."""

from __future__ import annotations

from collections.abc import Callable


class Reservation:
    """The bytes that one upload may write.

    Args:
        running: Those of the uploads of the same project.
        size: In bytes.
        on_empty: Called when it was the last one.
    """

    def __init__(self, running: dict[Reservation, int], size: int, on_empty: Callable[[], object]) -> None:
        self._earlier = tuple(running)
        self._running = running
        self._on_empty = on_empty
        running[self] = size

    @property
    def earlier_bytes(self) -> int:
        """What uploads that began before this one, and have not ended, may write. It only becomes less."""
        return sum(self._running.get(each, 0) for each in self._earlier)

    def release(self) -> None:
        """The upload has ended: its file is listed, or gone."""
        del self._running[self]
        if not self._running:
            self._on_empty()


class Reservations:
    """Those of all projects. For one event loop."""

    def __init__(self) -> None:
        self._projects: dict[str, dict[Reservation, int]] = {}

    def reserve(self, project: str, size: int) -> Reservation:
        """Count ``size`` bytes against the uploads of the project that begin after this one."""
        running = self._projects.setdefault(project, {})
        return Reservation(running, size, lambda: self._projects.pop(project))
