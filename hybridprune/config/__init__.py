"""Options of the stages and how they are resolved."""

from hybridprune.config.argument_names import argument_names
from hybridprune.config.check import checked, checked_value, shown
from hybridprune.config.given import given
from hybridprune.config.options import (
    SCRIPTS,
    SUBCOMMANDS,
    CascadeOptions,
    CurvatureOptions,
    CutOptions,
    DataOptions,
    GatingOptions,
    LatencyTarget,
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
from hybridprune.config.recipes import RECIPES
from hybridprune.config.resolve import Invocation, config_here, help_text, identity, resolve, to_json

__all__ = [
    "RECIPES",
    "SCRIPTS",
    "SUBCOMMANDS",
    "CascadeOptions",
    "CurvatureOptions",
    "CutOptions",
    "DataOptions",
    "GatingOptions",
    "Invocation",
    "LatencyTarget",
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
    "argument_names",
    "checked",
    "checked_value",
    "config_here",
    "given",
    "help_text",
    "identity",
    "resolve",
    "shown",
    "to_json",
]
