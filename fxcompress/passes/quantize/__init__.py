"""Methods that keep weights in fewer bits."""
