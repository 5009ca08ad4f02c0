"""Batches: a file of inference requests, answered in the background within a day (`/v1/batches`)."""
