"""Is the new adapter better, and what did it forget? One engine of comparison; EVALUATION.md says how it decides."""
