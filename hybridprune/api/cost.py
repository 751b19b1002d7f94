# pyright: strict, reportUnnecessaryIsInstance=false
"""The cost of a routed network, for Python users."""

from __future__ import annotations

from numbers import Integral

from hybridprune.errors import UserError
from hybridprune.measure import cost
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.held import HoldsModule, HoldsNetwork, network_of
from hybridprune.models.routed import RoutedNetwork


def count(net: RoutedNetwork | HoldsModule | HoldsNetwork, input_size: int) -> NetworkCost:
    """MACs and parameters of a gated network, or of a cascade, for one image ``[1, 3, input_size, input_size]``.

    They are counted on the meta device: nothing is computed, so it takes no time. ``net`` may also be what `load` or
    `cascade` returns. Raises UserError if it is another module, or cannot take images of this size.
    """
    network = network_of(net)
    if not isinstance(network, RoutedNetwork):
        raise UserError(
            f"net: is a {type(network).__name__}, not a gated network (load(run), say); for any other module "
            "hybridprune.measure.cost.count_module(module, example) gives MACs and parameters"
        )
    if not isinstance(input_size, Integral) or isinstance(input_size, bool) or input_size < 1:
        raise UserError(f"input_size {input_size!r}: must be a whole number of pixels above 0")
    try:
        return cost.count(network, int(input_size))
    except UserError as error:
        error.args = (str(error).replace("--resize", "input_size"),)
        raise
