"""LoRA training: recipe, batches, training loop, checkpoints, export."""
