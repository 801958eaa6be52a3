"""Helpers for tests, the demonstration and the benchmark; not needed at run time."""
