"""The one place that holds the version; `pyproject.toml` reads it too."""

VERSION = "0.1.0"
