"""Optimal brain surgeon with Kronecker factors."""
