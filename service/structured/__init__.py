"""Structured outputs: what a grammar may cost the engine, checked before the engine sees it."""
