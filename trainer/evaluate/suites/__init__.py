"""Suites, and the general suite's data, which was written for the trainer and ships with it."""
