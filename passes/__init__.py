"""Compression methods, one a file; each decides and none of them edits a graph."""
