"""The agent: one engine where it is, its admission queue, and the way to it (`hatrack agent`)."""
