"""What a release consists of, made from the sources: `make dist`. See docs/releasing.md."""
