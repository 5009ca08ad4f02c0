"""Training benchmarks: our loop beside TRL's, and a real data set from file to accuracy."""
