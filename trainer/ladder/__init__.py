"""Ladders: should one fine-tune at all? Each rung is measured on the same held-out examples, the cheapest first."""
