"""Tests. `tests.support` also serves the benchmark and the tools."""
