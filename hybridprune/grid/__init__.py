"""Runs of the stages over seeds, ratios and alphas: ``hybridprune grid grid.json``.

(``hybridprune curve`` is another thing: the operating points of one finished run.)
"""
