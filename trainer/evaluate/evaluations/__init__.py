"""Evaluations on demand (`/v1/evaluations`): stored, queued, each run by a worker process."""
