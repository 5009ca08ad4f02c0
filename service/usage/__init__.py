"""Tokens used, by hour, project, key, adapter and version."""
