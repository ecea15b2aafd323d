"""Why axes move together: in words, and as pictures."""
