"""The parts of evaluations put together, for the trainer's application."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import Installation, Settings
from trainer.evaluations.place import EvaluationPlace
from trainer.evaluations.records import EvaluationRows
from trainer.evaluations.runner import Command, Runner, worker_command
from trainer.evaluations.service import Evaluations
from trainer.evaluations.tables import STEPS
from trainer.jobs.database import Database
from trainer.jobs.gateway_side import GatewaySide
from trainer.jobs.pulse import Pulse
from trainer.reviews.service import Reviews


@dataclass(frozen=True, slots=True)
class Desk:
    """All that evaluations are made of in the trainer's own process."""

    database: Database
    place: EvaluationPlace
    gateway: GatewaySide
    runner: Runner
    service: Evaluations

    @classmethod
    def build(
        cls,
        settings: Settings,
        installation: Installation,
        positions: int,
        command: Command = worker_command,
        reviews: Reviews | None = None,
    ) -> Desk:
        """Put the parts together; nothing is opened or started.

        Args:
            positions: The base's longest context, tokens.
            command: A worker's command line.
            reviews: Where pairs for people go.
        """
        database = Database(installation.directory / "evaluations.db", STEPS)
        place = EvaluationPlace(installation.directory / "evaluations", installation.directory / "spent-evaluations")
        pulse = Pulse()
        gateway = GatewaySide(installation.gateway, settings, database, place, EvaluationRows())
        return cls(
            database=database,
            place=place,
            gateway=gateway,
            runner=Runner(settings, database, place, pulse, gateway, command, reviews),
            service=Evaluations(settings, installation, positions, database, place, pulse),
        )

    async def start(self) -> None:
        """Open the records, find what a former trainer has left, and begin. Raises SettingsError."""
        self.place.open()
        await self.database.open()
        await self.gateway.start()
        await self.runner.start()

    async def stop(self) -> None:
        """Have the worker end, and close everything."""
        await self.runner.stop()
        await self.gateway.stop()
        await self.database.close()
