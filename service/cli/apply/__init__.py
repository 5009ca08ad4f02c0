"""`hatrack apply FILE`: adapters, aliases, splits, keys and stores as desired state."""
