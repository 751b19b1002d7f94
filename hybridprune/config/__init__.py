"""Options of the stages and how they are resolved."""

from hybridprune.config.check import checked, checked_value
from hybridprune.config.options import (
    SCRIPTS,
    CurvatureOptions,
    CutOptions,
    DataOptions,
    GatingOptions,
    LossOptions,
    NetworkOptions,
    OptimOptions,
    ParentOptions,
    PruneConfig,
    PruneOptions,
    RlConfig,
    RoutingOptions,
    RunOptions,
    SparsityOptions,
    SpConfig,
    SupervisedOptions,
)
from hybridprune.config.resolve import Invocation, identity, resolve, to_json

__all__ = [
    "SCRIPTS",
    "CurvatureOptions",
    "CutOptions",
    "DataOptions",
    "GatingOptions",
    "Invocation",
    "LossOptions",
    "NetworkOptions",
    "OptimOptions",
    "ParentOptions",
    "PruneConfig",
    "PruneOptions",
    "RlConfig",
    "RoutingOptions",
    "RunOptions",
    "SpConfig",
    "SparsityOptions",
    "SupervisedOptions",
    "checked",
    "checked_value",
    "identity",
    "resolve",
    "to_json",
]
