"""Assembles the gateway's side of training: client, trainer process, health watch, evaluations and revalidations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from service.access.service import Keys
from service.config import Settings
from service.database import Database
from service.files.service import Files
from service.objects.adapters import StoredAdapters
from service.registry.catalog import Catalog
from service.registry.verdicts import Verdicts
from service.training.client import TrainerClient
from service.training.config import TrainerConfig
from service.training.evaluations import EvaluationService
from service.training.jobs import CheckGrounding, JobService
from service.training.ladders import CheckStore, LadderService
from service.training.leftover_keys import LeftoverKeys
from service.training.process import TrainerProcess
from service.training.revalidation import Revalidations, RevalidationTimer
from service.training.service import Training
from service.training.watch import TrainerWatch


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The gateway's components for training. ``process`` is None if the gateway does not start the trainer."""

    training: Training
    process: TrainerProcess | None
    watch: TrainerWatch
    jobs: JobService
    evaluations: EvaluationService
    ladders: LadderService
    revalidations: Revalidations
    timer: RevalidationTimer | None
    leftover_keys: LeftoverKeys | None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the components; stop them in reverse order."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.training.close)
            if self.process is not None:
                await self.process.start()
                stack.push_async_callback(self.process.stop)
            if self.leftover_keys is not None:
                await self.leftover_keys.start()
                stack.push_async_callback(self.leftover_keys.stop)
            await self.watch.start()
            stack.push_async_callback(self.watch.stop)
            if self.timer is not None:
                await self.timer.start()
                stack.push_async_callback(self.timer.stop)
            yield


def assemble(
    settings: Settings,
    database: Database,
    keys: Keys,
    catalog: Catalog,
    files: Files,
    verdicts: Verdicts,
    adapters: StoredAdapters,
    other_bases: Sequence[Settings] = (),
    check_store: CheckStore | None = None,
    check_grounding: CheckGrounding | None = None,
) -> Sidecar:
    """Create the components without starting them.

    ``other_bases``: the settings of bases beside the default; ``check_store``: see `LadderService`;
    ``check_grounding``: see `JobService`.
    """
    config = TrainerConfig.from_settings(settings, other_bases)
    client = TrainerClient(socket=str(config.socket) if config.socket else None, url=config.url, secret=config.secret)
    training = Training(client, database, keys, files)
    evaluations = EvaluationService(training, files, catalog, database)
    revalidations = Revalidations(verdicts, evaluations, client)
    configured = config.starts or bool(settings.trainer_url)
    every_s = settings.revalidate_every_hours * 3600 if configured else 0
    return Sidecar(
        training=training,
        process=TrainerProcess(config) if config.starts else None,
        watch=TrainerWatch(client, configured=configured),
        jobs=JobService(training, files, catalog, database, adapters, check_grounding),
        evaluations=evaluations,
        ladders=LadderService(training, files, catalog, database, check_store),
        revalidations=revalidations,
        timer=RevalidationTimer(revalidations, every_s=every_s) if every_s else None,
        leftover_keys=LeftoverKeys(client, database, keys) if configured else None,
    )
