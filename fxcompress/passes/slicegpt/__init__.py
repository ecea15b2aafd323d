"""SliceGPT: the residual stream in its principal axes, and the last of them cut away."""
