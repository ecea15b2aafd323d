"""Random nets through every pass and every way out, against references of their own."""
