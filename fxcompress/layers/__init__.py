"""Linear maps, and where the units of a group lie in weights and in signals."""
