"""Options of the stages and how they are resolved."""

from hybridprune.config.options import (
    CurvatureOptions,
    DataOptions,
    NetworkOptions,
    OptimOptions,
    ParentOptions,
    PruneConfig,
    PruneOptions,
    RlConfig,
    RoutingOptions,
    RunOptions,
    SpConfig,
    SupervisedOptions,
)
from hybridprune.config.resolve import Invocation, identity, resolve, to_json

__all__ = [
    "CurvatureOptions",
    "DataOptions",
    "Invocation",
    "NetworkOptions",
    "OptimOptions",
    "ParentOptions",
    "PruneConfig",
    "PruneOptions",
    "RlConfig",
    "RoutingOptions",
    "RunOptions",
    "SpConfig",
    "SupervisedOptions",
    "identity",
    "resolve",
    "to_json",
]
