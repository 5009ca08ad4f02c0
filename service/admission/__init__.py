"""The bounded, fair, slot-aware queue in front of the engine."""
