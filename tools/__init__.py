"""What a developer of this project runs; not installed."""
