"""The vector stores made from the settings."""

from __future__ import annotations

from service.config import MIB, Settings
from service.database import Database
from service.files.blob_store import BlobStore
from service.files.service import Files
from service.knowledge.embeddings import Embedder, EmbedderConfig
from service.knowledge.file_holds import FileHolds
from service.knowledge.index.stores import Stores
from service.knowledge.service import Knowledge


def assemble(settings: Settings, database: Database, files: Files) -> Knowledge:
    """Make the parts and join them."""
    stores = Stores(
        database,
        settings.home / "grounding",
        Embedder(EmbedderConfig.from_settings(settings)),
        BlobStore(settings.files_dir).path,
        memory_bytes=settings.grounding_memory_mib * MIB,
        vector_weight=settings.grounding_vector_weight,
    )
    return Knowledge(stores, FileHolds(files, database), database)
