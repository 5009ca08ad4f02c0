"""Metrics that score an answer against the reference: one class each, from 0 to 1 if it may decide."""
