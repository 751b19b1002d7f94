"""Curvature of a network's loss: Kronecker factors of the Fisher, their eigenbases, exact second moments."""

from hybridprune.curvature.collect import SecondMoments, collect_factors, collect_second_moments
from hybridprune.curvature.eigen import EigenBasis, eigenbasis, pi_damping, power
from hybridprune.curvature.layer import LayerFactors
from hybridprune.curvature.shard import Shard

__all__ = [
    "EigenBasis",
    "LayerFactors",
    "SecondMoments",
    "Shard",
    "collect_factors",
    "collect_second_moments",
    "eigenbasis",
    "pi_damping",
    "power",
]
