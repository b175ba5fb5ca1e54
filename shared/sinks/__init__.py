"""Where a run's numbers go besides metrics.jsonl: trackio, Weights & Biases, TensorBoard."""
