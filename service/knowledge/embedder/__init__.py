"""The embedder: a process of its own that reads documents and turns text into vectors. Nothing else imports it."""
