"""The gateway benchmark: what Hatrack's data path costs, beside other ways to stand in front of the same engine."""
