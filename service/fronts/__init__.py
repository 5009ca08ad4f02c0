"""Fronts: processes that answer inference for a gateway, which stays the only writer (`hatrack front`)."""
