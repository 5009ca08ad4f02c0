"""Datasets: names with numbered versions (`support@3`), each of which is an uploaded file."""
