"""Marks of the arms of a comparison, the same in every plot, by matplotlib's names."""

MARKERS = {"without pruning": "o", "static only": "s", "dynamic only": "^", "static + dynamic": "D"}
