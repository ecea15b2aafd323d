"""torch-pruning's importance classes on our groups: baselines with its own numbers."""
