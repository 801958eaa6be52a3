"""Event loops that must not wait: what may block runs in a thread, and a debug switch measures what does not."""
