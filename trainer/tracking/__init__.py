"""Sends jobs to experiment trackers (MLflow, Weights & Biases): see TRACKING.md."""
