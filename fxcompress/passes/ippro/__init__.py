"""IPPRO: pruning by scores in projective space."""
