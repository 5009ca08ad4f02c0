"""Tuning: recipe, batches, the training loop, export."""
