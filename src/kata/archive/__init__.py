"""Tar archives, on both sides: an untrusted one read, files packed, and an untrusted one extracted."""
