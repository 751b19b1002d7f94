"""Curvature of a network's loss: Kronecker factors of the Fisher, their eigenbases, exact second moments."""

from hybridprune.curvature.collect import SecondMoments, collect_factors, collect_second_moments
from hybridprune.curvature.eigen import EigenBasis, eigenbasis, pi_damping, power, powers
from hybridprune.curvature.extension import Unobservable
from hybridprune.curvature.layer import LayerFactors
from hybridprune.curvature.likelihood import CROSS_ENTROPY, Likelihood, likelihood_of
from hybridprune.curvature.rows import Rows, rows_of_images

__all__ = [
    "CROSS_ENTROPY",
    "EigenBasis",
    "LayerFactors",
    "Likelihood",
    "Rows",
    "SecondMoments",
    "Unobservable",
    "collect_factors",
    "collect_second_moments",
    "eigenbasis",
    "likelihood_of",
    "pi_damping",
    "power",
    "powers",
    "rows_of_images",
]
