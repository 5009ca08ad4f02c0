"""The tables of looks alone, as a worker finds it in the database of the trainer that started it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from trainer.database import FILE
from trainer.evaluate.evaluations.look_store import look_examples, looks


def make_look_database(home: Path) -> None:
    """Create it under a trainer's home, unless it is there."""
    home.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(f"sqlite:///{home / FILE}")
    for table in (looks, look_examples):
        table.create(engine, checkfirst=True)
    engine.dispose()
