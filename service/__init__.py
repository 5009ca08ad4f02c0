"""Hatrack's gateway: everything that an HTTP client can reach."""

__version__ = "0.1.0"
