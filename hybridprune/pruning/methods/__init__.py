"""The pruning methods, a file or a folder each; those that are a score and no more are in `by_score`."""

from __future__ import annotations

from hybridprune.config.check import shown
from hybridprune.config.methods import METHODS
from hybridprune.config.registry import Extension
from hybridprune.errors import UserError
from hybridprune.pruning.method import BranchMethod, ChannelMethod, DirectionMethod, Method


def find(method: str | Extension, source: str = "--method") -> Method:
    """The method of this name, or itself; its module is imported if need be.

    Raises UserError, which names ``source``, if there is none, it cannot be imported or is no method.
    """
    found = METHODS.load(method, source) if isinstance(method, str) else method
    if not isinstance(found, BranchMethod | ChannelMethod | DirectionMethod):
        named = method if isinstance(method, str) else shown(method)
        raise UserError(
            f"{source} {named}: is a {type(found).__name__}; give a ChannelMethod or DirectionMethod of "
            "hybridprune.methods"
        )
    return found
