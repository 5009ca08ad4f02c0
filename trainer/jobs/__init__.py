"""Entry points of earlier releases, in which fine-tuning jobs were in this package instead of `trainer.finetune`.

Release files may be replaced while an earlier trainer and its workers run. That trainer starts workers by these module
names, and its workers import modules from here that they have not loaded yet. Nothing in this release uses them.
"""
