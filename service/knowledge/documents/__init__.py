"""Documents: what can be read, how it becomes blocks of text, and how these are cut into passages."""
