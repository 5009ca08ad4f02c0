"""Entry point of earlier releases, in which evaluations were here instead of in `trainer.evaluate.evaluations`."""
