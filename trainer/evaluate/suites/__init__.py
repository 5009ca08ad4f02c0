"""Suites that ship with the trainer, one JSONL file each; written for it, so that they can go wherever it goes."""
