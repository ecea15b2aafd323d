"""Time models against each other, honestly."""
