"""The gateway's side of training: what is let through to the trainer, and the trainer's process."""
