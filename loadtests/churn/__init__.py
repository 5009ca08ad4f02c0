"""Requests over adapters that each spell a word of their own, while adapters and engine change under them."""
