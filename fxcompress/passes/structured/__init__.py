"""The one pass that removes units, and what every criterion shares."""
