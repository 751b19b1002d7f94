"""Times of layers as they are inside of a network, which a table of layers by themselves does not know.

By itself a layer finds its input in the caches and its layout as it likes it; in a network each operation more costs
something. How much is fitted on a few random cuts of the very network, deployed and timed.
"""

from __future__ import annotations

import dataclasses
import time as wall
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hybridprune.measure.latency import Clock
from hybridprune.models.factored import Ranks
from hybridprune.progress_bar import bar
from hybridprune.pruning.budget.space import Cell, Space, pick
from hybridprune.pruning.clock import DirectionTimes, NetworkClock
from hybridprune.pruning.directions.inner_channels import InnerCell
from hybridprune.pruning.directions.space import DirectionCell
from hybridprune.pruning.plan import DirectionPlan

NETWORKS = 7
"""Random cuts that are timed; twice as many predict hardly better."""
SPREAD = 0.25
"""How far from a random cut's level each layer's share may be."""
RIDGE = 1e-3
GAINS = (0.1, 3.0)


@dataclass(frozen=True)
class NetworkFit:
    """The fit of times in tables to whole networks: ``now + gain (time - now) + each_ns`` of another form."""

    gain: float = 1.0
    """Of a nanosecond that a table says another form saves, so much is saved."""
    each_ns: float = 0.0
    """Nanoseconds more of each layer in another form."""
    channel_gain: float = 1.0
    """Of a nanosecond that a table says fewer channels save, so much is saved."""


@dataclass(frozen=True, eq=False)
class TimesInNetwork:
    """Times of one layer in its forms, inside of its network: a `DirectionTimes`."""

    table: DirectionTimes
    form: Ranks
    """As it is now: its time is right already."""
    fit: NetworkFit

    def of(self, ranks: Ranks) -> Tensor:
        """Nanoseconds, int64, of the form with these ranks: 0-d, or of ranks ``[M]`` as many."""
        now, found = self.table.of(self.form), self.table.of(ranks)
        if not isinstance(ranks.rank_in, Tensor) and not isinstance(ranks.rank_out, Tensor) and ranks == self.form:
            return found
        return (now + self.fit.gain * (found - now) + self.fit.each_ns).round().long().clamp(min=1)


def calibrated(plan: DirectionPlan, clock: NetworkClock, now: Clock = wall.perf_counter) -> DirectionPlan:
    """The plan with times as whole networks have them.

    Random cuts from light to deep are sketched, deployed and timed: `NETWORKS` of them, or as many as begin within
    ``clock.seconds``, one at least. A plan none of whose layers could be timed is left as it is.
    """
    cells = [cell for cell in plan.space.cells if isinstance(cell, DirectionCell) and cell.times is not None]
    if not cells:
        return plan
    draw = np.random.default_rng(1)
    # The order goes back and forth between light and deep, so that the first few tell as much as they can.
    levels = [(2 * number % (NETWORKS + 1)) / NETWORKS for number in range(1, NETWORKS + 1)]
    inner = [cell for cell in plan.space.cells if isinstance(cell, InnerCell)]
    expected: list[int] = []
    changed: list[int] = []
    narrowed: list[int] = []
    realised: list[float] = []
    deadline = now() + clock.seconds
    with bar(description="timing whole networks", total=NETWORKS, unit="network") as shown:
        for level in levels:
            if realised and now() >= deadline:
                break
            kept = random_cut(plan.space, level, draw)
            ranks = plan.ranks(kept)
            expected.append(plan.space.cost(kept).ns)
            changed.append(sum(ranks[cell.name] != cell.form for cell in cells))
            narrowed.append(sum(cell.cost(pick(cell, kept)).ns for cell in inner))
            realised.append(clock.read(plan.sketch(kept)).share * clock.dense_ns)
            shown.update()
    fit = fit_networks(plan.space.cost(plan.space.everything()).ns, expected, changed, realised, narrowed)
    space = dataclasses.replace(plan.directions, cells=[_fitted(cell, fit) for cell in plan.space.cells])
    return dataclasses.replace(plan, directions=space)


def _fitted(cell: Cell, fit: NetworkFit) -> Cell:
    if isinstance(cell, InnerCell):
        return dataclasses.replace(cell, gain=fit.channel_gain)
    if not isinstance(cell, DirectionCell) or cell.times is None:
        return cell
    return dataclasses.replace(cell, times=TimesInNetwork(cell.times, cell.form, fit))


def fit_networks(
    now_ns: float,
    expected: Sequence[float],
    changed: Sequence[int],
    realised: Sequence[float],
    narrowed: Sequence[float] | None = None,
) -> NetworkFit:
    """The fit by which times ``expected`` of networks, with so many layers ``changed``, come nearest to ``realised``.

    Of ``expected_j - now_ns``, fewer channels are to save ``narrowed_j``, by default nothing, and other forms the rest,
    ``saved_j``. The fit is the least of ``sum_j (now + gain saved_j + each changed_j + channel_gain narrowed_j -
    realised_j)^2`` (ns) and a little for being far from gains of 1 and each 0, as some networks determine only their
    sum. ``each`` is not negative: a cut that saves nothing must not pay; gains are within `GAINS`.
    """
    by_channels = np.zeros(len(expected)) if narrowed is None else np.asarray(narrowed, float)
    saved = np.asarray(expected, float) - now_ns - by_channels
    features = np.stack([saved, by_channels, np.asarray(changed, float)], 1)
    missing = np.asarray(realised, float) - now_ns - saved - by_channels
    scale = np.maximum(np.abs(features).mean(0) + features.std(0), 1e-9)

    def solved(columns: list[int]) -> np.ndarray:
        part = features[:, columns] / scale[columns]
        normal = part.T @ part + RIDGE * len(part) * np.eye(len(columns))
        return np.linalg.solve(normal, part.T @ missing) / scale[columns]

    *gains, each = solved([0, 1, 2])
    if each < 0:
        gains, each = solved([0, 1]), 0.0
    forms, channels = (float(np.clip(1 + gain, *GAINS)) for gain in gains)
    return NetworkFit(forms, float(each), channels)


def random_cut(space: Space, level: float, draw: np.random.Generator) -> list[int]:
    """Kept units of each set: each layer by its own share, within `SPREAD` of ``level`` (0: the deepest cut).

    A layer whose directions are cut takes one of the forms that a plan would take: those faster than what it is. Where
    the channels between two layers may go instead, they do every other time.
    """
    low, high, kept = max(0.0, level - SPREAD), min(1.0, level + SPREAD), space.everything()
    if not isinstance(space.cells[0], DirectionCell):
        return [max(s.least, round(draw.uniform(low, high) * len(s.scores))) for s in space.sets]
    for cell in space.cells:
        assert isinstance(cell, DirectionCell | InnerCell)
        if isinstance(cell, InnerCell):
            if draw.random() < 0.5:
                continue
            for place in (place for other in cell.pair for place in space.cells[other].sets):
                kept[place] = len(space.sets[place].scores)
        choices = cell.choices()
        order = choices.ns.argsort(stable=True)
        order = order[choices.ns[order] <= choices.ns[0]]  # the first is the layer as it is
        choice = order[round(draw.uniform(low, high) * (len(order) - 1))]
        for place, number in zip(cell.sets, choices.kept(int(choice)), strict=False):
            kept[place] = number
    return kept
