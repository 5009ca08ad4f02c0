"""Which trackers the operator has set up."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from trainer.config import Settings, worker_environment
from trainer.tracking.mlflow import MlflowTracker
from trainer.tracking.tracker import Tracker
from trainer.tracking.wandb import WandbTracker


def trackers(settings: Settings, directory: Path) -> dict[str, Tracker]:
    """The trackers that jobs may name, by their `type`.

    Args:
        directory: Where trackers may keep files.
    """
    found: dict[str, Tracker] = {}
    if settings.mlflow_url is not None:
        token = settings.mlflow_token.get_secret_value() if settings.mlflow_token is not None else None
        found[MlflowTracker.name] = MlflowTracker(settings.mlflow_url, token)
    if unavailable(WandbTracker.name, settings) is None:
        place = directory / WandbTracker.name
        found[WandbTracker.name] = WandbTracker(place, _wandb_environment(settings, place))
    return found


def unavailable(name: str, settings: Settings) -> str | None:
    """Why jobs cannot name this tracker, and what the operator does about it; None if they can."""
    if name == MlflowTracker.name:
        if settings.mlflow_url is None:
            return "MLflow is not set up here: the operator sets HATRACK_TRAINER_MLFLOW_URL"
        return None
    if settings.wandb_key is None and settings.wandb_mode == "online":
        return (
            "Weights & Biases is not set up here: the operator sets HATRACK_TRAINER_WANDB_KEY, or "
            "HATRACK_TRAINER_WANDB_MODE=offline"
        )
    if find_spec("wandb") is None:
        return "Weights & Biases is not installed here: the operator runs `pip install 'hatrack[wandb]'`"
    return None


def _wandb_environment(settings: Settings, directory: Path) -> dict[str, str]:
    # the package would put files into the home directory, and ask a terminal
    own = {
        "WANDB_MODE": settings.wandb_mode,
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(directory),
        "WANDB_CACHE_DIR": str(directory / "cache"),
        "WANDB_CONFIG_DIR": str(directory / "config"),
        "WANDB_DATA_DIR": str(directory / "data"),
    }
    if settings.wandb_key is not None:
        own["WANDB_API_KEY"] = settings.wandb_key.get_secret_value()
    if settings.wandb_url is not None:
        own["WANDB_BASE_URL"] = settings.wandb_url
    return {name: value for name, value in worker_environment().items() if not name.startswith("WANDB_")} | own
