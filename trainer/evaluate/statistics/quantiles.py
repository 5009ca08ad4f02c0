"""Quantiles of two-sided intervals, by scipy's special functions: planning asks for thousands."""

from __future__ import annotations

import math

from scipy import special


def normal(confidence: float) -> float:
    """The normal distribution's two-sided quantile in standard errors: 1.96 for a confidence of 0.95."""
    return float(special.ndtri((1 + confidence) / 2))


def student(confidence: float, degrees: float) -> float:
    """The same for Student's t with this many degrees of freedom; infinitely many give `normal`."""
    return float(special.stdtrit(degrees, (1 + confidence) / 2)) if math.isfinite(degrees) else normal(confidence)
