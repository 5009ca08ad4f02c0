"""Training data: reading example files and rendering them to tokens."""
