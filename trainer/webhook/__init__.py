"""Tells an operator's address of what has ended: see WEBHOOK.md."""
