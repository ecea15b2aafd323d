"""Rules that say how each ATen operator relates the axes of its inputs and outputs."""
