"""Thin system calls that the standard library lacks, one concern a file; they fail with OSError: call and path."""
