"""Least squares on activations: what the other units can reconstruct goes."""
