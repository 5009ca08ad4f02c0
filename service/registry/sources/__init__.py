"""Adapters that the gateway fetches from a hub, a bucket or a web server, where the operator's list allows it."""
