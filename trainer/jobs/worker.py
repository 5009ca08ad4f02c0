"""`python -m trainer.jobs.worker DIRECTORY --stage validate|train`, as trainers of earlier releases start it."""

from __future__ import annotations

import sys

from trainer.finetune.worker import main

if __name__ == "__main__":
    sys.exit(main())
