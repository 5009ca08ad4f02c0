"""Training data: reads example files, checks them, splits off held-out examples, and renders them to tokens."""
