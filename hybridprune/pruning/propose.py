"""From a network and the name of a method to what would be cut: the one path that all methods share."""

from __future__ import annotations

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.pruning.method import DirectionMethod
from hybridprune.pruning.methods import METHODS
from hybridprune.pruning.proposal import Proposal
from hybridprune.pruning.propose_channels import propose_channels
from hybridprune.pruning.propose_directions import propose_directions
from hybridprune.pruning.subject import Subject


def propose(subject: Subject, options: CutOptions, curvature: CurvatureOptions) -> Proposal:
    """Score all units of the network by the method that the options name; UserError if it could cut nothing."""
    method = METHODS[options.method]
    allocation = method.allocation if options.allocation == "auto" else options.allocation
    if isinstance(method, DirectionMethod):
        return propose_directions(subject, method, allocation, options, curvature)
    return propose_channels(subject, method, allocation, options, curvature)
