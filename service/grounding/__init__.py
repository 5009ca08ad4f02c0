"""Grounding: what is retrieved for a request and put into its prompt."""
