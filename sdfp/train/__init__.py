"""Training: the pure step, the loops over batches, and stages with their checkpoints."""
