"""The report as one HTML page: no script, no font, no image from elsewhere; light and dark, wide and narrow."""

from trainer.evaluate.page.render import render

__all__ = ["render"]
