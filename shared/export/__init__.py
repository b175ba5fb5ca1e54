"""Trained weights for others: a folder that safetensors, transformers or plain MLX reads, with a model card."""
