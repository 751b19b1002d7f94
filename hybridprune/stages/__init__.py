"""The three stages: parse, run, result."""
