"""Evaluations that somebody asked for (`/v1/evaluations`): kept, queued, and each done by a process of its own."""
