"""Counting what networks cost."""
