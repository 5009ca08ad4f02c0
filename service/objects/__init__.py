"""Adapters and files in an object store (`HATRACK_STORE_URL`), with the local folders as a bounded cache of it."""
