"""Curvature of a network's loss: Kronecker factors of the Fisher, their eigenbases, exact second moments."""

from hybridprune.curvature.collect import LayerFactors, SecondMoments, collect_factors, collect_second_moments
from hybridprune.curvature.eigen import EigenBasis, eigenbasis, power

__all__ = [
    "EigenBasis",
    "LayerFactors",
    "SecondMoments",
    "collect_factors",
    "collect_second_moments",
    "eigenbasis",
    "power",
]
