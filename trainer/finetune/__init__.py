"""Fine-tuning jobs: what is asked for, what state it is in, and the process that does it."""
