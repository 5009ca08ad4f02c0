"""Paired comparisons: intervals, noise between runs, power, agreement. Pure arithmetic over scores."""
