"""Adapters over HTTP: upload, versions, aliases, promotion, deletion, and the proof that the engine applies them."""
