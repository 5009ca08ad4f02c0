"""`python -m trainer.evaluations.worker DIRECTORY`, as trainers of earlier releases start it."""

from __future__ import annotations

import sys

from trainer.evaluate.evaluations.worker import main

if __name__ == "__main__":
    sys.exit(main())
