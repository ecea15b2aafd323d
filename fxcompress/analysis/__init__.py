"""The coupling analysis: which axes move together, what their units are, and what they cost."""
