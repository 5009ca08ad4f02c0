"""Where fine-tuning jobs were before `trainer.finetune`: what trainers and workers of earlier releases still ask for.

Release files may be replaced while an earlier trainer and its workers run. That trainer starts workers by the names
that are here, and those workers import here what they have not imported yet. Nothing of this release uses it.
"""
