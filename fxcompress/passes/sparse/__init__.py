"""Methods that make entries of weights zero and leave sizes alone."""
