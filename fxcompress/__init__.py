"""A compiler for model compression: a PyTorch model in, a smaller one and its proof out."""

__version__ = "0.1.0"
