"""Learning-rate schedules: points ``share of the epochs -> factor``, joined in one of four ways."""

from __future__ import annotations

import math
from collections.abc import Mapping


def factor(kind: str, points: Mapping[str, float], share: float) -> float:
    """The factor of the learning rate at ``share`` in [0, 1] of the training.

    Between two points of factors a and b, of whose distance the share p is done, it is

    - ``stair``: ``a``, the factor of the last point reached;
    - ``up-down``: ``a + (b - a) p``;
    - ``exponential``: ``a (b / a)^p``, or as in ``up-down`` if one of them is 0;
    - ``cosine``: as in ``up-down`` where it rises, and ``a + (b - a) (1 - cos(pi p)) / 2`` where it falls (Loshchilov &
      Hutter 2017, without restarts). ``{"0": 0, "0.05": 1, "1": 0}`` is a warm-up over 5 % of the training, one decay.

    Before the first point the factor is joined to 1 at share 0 (if no point lies at 0).
    """
    ordered = sorted((float(at), value) for at, value in points.items())
    if not ordered or ordered[0][0] > 0:
        ordered.insert(0, (0.0, 1.0))
    reached = [point for point in ordered if point[0] <= share]
    at, value = reached[-1]
    if kind == "stair" or len(reached) == len(ordered):
        return value
    next_at, next_value = ordered[len(reached)]
    progress = (share - at) / (next_at - at)
    if kind == "exponential" and value > 0 and next_value > 0:
        return value * (next_value / value) ** progress
    if kind == "cosine" and next_value < value:
        progress = (1 - math.cos(math.pi * progress)) / 2
    return value + (next_value - value) * progress
