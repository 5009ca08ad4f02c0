"""Grounding made from the settings: the stores, the providers, and the hook over them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from service.config import MIB, Settings
from service.database import Database
from service.files.service import Files
from service.files.shelf import Shelf
from service.grounding.config import EMBEDDED, WEBHOOK
from service.grounding.embedded.stores import Stores
from service.grounding.embeddings import Embedder, EmbedderConfig
from service.grounding.holdings import Holdings
from service.grounding.hook import Hook
from service.grounding.plugins import load_plugins
from service.grounding.provider import Provider
from service.grounding.service import EmbeddedProvider, Knowledge
from service.grounding.template import Quoter, control_tokens
from service.grounding.webhook import Webhook


@dataclass(frozen=True, slots=True)
class Grounding:
    """The gateway's grounding."""

    knowledge: Knowledge
    hook: Hook
    webhook: Webhook | None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open meanwhile; the database and the files are open before and after."""
        await self.knowledge.open()
        try:
            yield
        finally:
            if self.webhook is not None:
                await self.webhook.close()
            await self.knowledge.close()


def model_context(base_dir: Path) -> int | None:
    """The context in tokens that a checkpoint says it has, which is what vLLM takes where no setting names one."""
    path = base_dir / "config.json"
    config = orjson.loads(path.read_bytes()) if path.is_file() else {}
    found = (config.get("text_config") or config).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def assemble(settings: Settings, database: Database, files: Files) -> Grounding:
    """Make the parts and join them.

    Raises:
        SettingsError: The webhook's address is not allowed, or a package's provider cannot be loaded.
    """
    stores = Stores(
        database,
        settings.home / "grounding",
        Embedder(EmbedderConfig.from_settings(settings)),
        Shelf(settings.files_dir).path,
        memory_bytes=settings.grounding_memory_mib * MIB,
        vector_weight=settings.grounding_vector_weight,
    )
    webhook = None
    if settings.grounding_url and settings.grounding_secret is not None:
        webhook = Webhook(
            settings.grounding_url, settings.grounding_secret.get_secret_value(), settings.grounding_networks
        )
    providers: dict[str, Provider] = {EMBEDDED: EmbeddedProvider(stores), **load_plugins()}
    if webhook is not None:
        providers[WEBHOOK] = webhook
    hook = Hook(
        providers,
        stores,
        Quoter(control_tokens(settings.base_dir)),
        context=settings.context or model_context(settings.base_dir),
        on_failure=settings.grounding_on_failure,
        timeout_s=settings.grounding_timeout_s,
    )
    return Grounding(Knowledge(stores, Holdings(files, database), database), hook, webhook)
