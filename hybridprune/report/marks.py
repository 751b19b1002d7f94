"""How each arm of a comparison is marked in every plot, in matplotlib's names of marks."""

MARKERS = {"without pruning": "o", "static only": "s", "dynamic only": "^", "static + dynamic": "D"}
