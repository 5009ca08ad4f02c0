"""The embedded database: stores of passages on disk, searched by words and by meaning at once."""
