"""JSON files damaged by hand, for the tests of what reads them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from hybridprune.errors import UserError

Place = tuple[str | int, ...]
NASTY = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 7, 10**7, 1_800_002, 2**63, 10**40, 0.5, 1e308, float("nan"), float("inf"), "",
     "8", "conv", "../..", "/etc", "resnet", "vgg", "torchvision:resnet18", [], [1], [[]], ["a", "b", "c"], [0.1] * 3,
     {}, {"kind": "resize"}, {"layer": "backbone.conv", "rank_in": 10**9, "rank_out": None},
     {"kind": "resize", "layer": "backbone.conv", "in_channels": 3, "out_channels": 10**9}]
)  # fmt: skip


def places(record: Any, here: Place = ()) -> list[Place]:
    """Where something stands in nested JSON."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [here, *(place for key, value in items for place in places(value, (*here, key)))]


def damaged(record: Any, place: Place, value: Any, remove: bool) -> Any:
    """A copy with another value at ``place``, or without it."""
    if not place:
        return value
    record = copy.deepcopy(record)
    holder = record
    for key in place[:-1]:
        holder = holder[key]
    if remove:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return record


def quickly(read: Callable[[], Any]) -> Any:
    """What ``read`` gives, or the one line that it raises; only networks of the meta device are larger than a file."""
    started = time.process_time()
    try:
        found = read()
    except UserError as error:
        assert "\n" not in str(error)
        found = error
    assert time.process_time() - started < 30  # minutes, where a number of layers is believed
    return found


def damage(record: Any, data: st.DataObject) -> Any:
    """``record`` with something nasty in the place of something, or without it."""
    place, value = data.draw(st.sampled_from(places(record))), data.draw(NASTY)
    return damaged(record, place, value, data.draw(st.booleans()))
