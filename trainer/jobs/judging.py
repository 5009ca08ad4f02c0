"""A worker of an earlier release imports this in the middle of its job; what it has done stands in its directory."""

from __future__ import annotations

from trainer.jobs.restart import restart

restart()
