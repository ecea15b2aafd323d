"""Passes that change no size: norms renewed, trained or folded."""
