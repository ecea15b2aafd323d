"""Whether an exported file computes what its program does."""
