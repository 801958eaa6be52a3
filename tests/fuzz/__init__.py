"""Fuzzing: what others have written goes through the project's parsers and plans (`make fuzz`)."""
