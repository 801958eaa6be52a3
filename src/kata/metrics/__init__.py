"""Metrics in the text format of Prometheus: Kata's names, how durations are counted, how text is written and read."""
