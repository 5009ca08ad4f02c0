"""The settings' defaults are the ones that were measured."""

from __future__ import annotations

from service.config import MIB, Settings
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT
from service.knowledge.index.stores import DEFAULT_MEMORY_BYTES


def test_the_settings_say_what_the_library_does() -> None:
    fields = Settings.model_fields
    assert fields["grounding_vector_weight"].default == DEFAULT_VECTOR_WEIGHT
    assert fields["grounding_memory_mib"].default * MIB == DEFAULT_MEMORY_BYTES
