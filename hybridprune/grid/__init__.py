"""Runs of the stages over seeds, ratios and alphas: ``python -m hybridprune.sweep_runs grid.json``.

(``python -m hybridprune.sweep`` is another thing: the operating points of one finished run.)
"""
