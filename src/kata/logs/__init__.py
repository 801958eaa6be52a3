"""Logs of all components: lines of any of their formats to entries, merged, checked, and written in one format."""
