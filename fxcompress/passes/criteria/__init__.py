"""Criteria of one file each, with the passes that go by them."""
