"""Folding: units that are alike become one."""
