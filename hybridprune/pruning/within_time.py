"""A budget of time that is met by the clock: plans are made for corrected targets until the deployed network keeps it.

A table of times predicts well which of two plans is faster, and less well how fast it is. So each plan is sketched,
deployed and timed beside the dense network. What it is off by corrects the target of the next plan; scores are measured
once. Clocks are noisy, and of several times the nearest to a target is so by luck as well: the plan that is taken is
timed again, both networks deployed anew, and the mean of both times counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridprune.json_text import value_at
from hybridprune.progress_bar import bar
from hybridprune.pruning.budget.space import NS_PER_MS, Budget, Cost, InfeasibleBudget
from hybridprune.pruning.clock import NetworkClock, Reading
from hybridprune.pruning.plan import Plan

TOLERANCE = 0.05
"""How far the time may be off, relative to the budget."""
AIM = 0.02
"""How near is near enough to stop at once: another run of the clock says something else by about as much."""
ROUNDS = 6
LARGEST_STEP = 2.0


@dataclass(frozen=True)
class Attempt:
    """A plan for a target, and the time that its network takes."""

    kept: Sequence[int]
    cost: Cost
    """As the plan expects it."""
    reading: Reading
    """The mean of both, if it was timed again."""
    over: float
    """The realised time over the one that is wanted."""
    floored: bool
    """Whether no plan is expected to be faster."""
    spare: bool
    """Whether the plan leaves time: nothing is cut, or other bounds allow no more."""
    confirmed: bool = False
    """Whether it was timed again."""

    @property
    def settles(self) -> bool:
        """Whether no other plan need be tried: it is near enough, or the nearest that there is on its side."""
        return abs(self.over - 1) <= AIM or (self.spare if self.over < 1 else self.floored)


def allocate_within_time(
    plan: Plan, budget: Budget, clock: NetworkClock, target: float
) -> tuple[list[int], dict[str, Any]]:
    """Kept units of each set, and the record of how their network meets ``budget.ns`` by the clock.

    ``target`` is what the user gave. Up to 1 it is a share of the dense network's time, in whatever run both are timed.
    The record has ``target``, ``target_ms``, ``predicted_ms``, ``realised_ms`` and ``dense_ms`` of a batch, ``met``
    (within `TOLERANCE`, or faster because nothing is cut or other bounds are met), ``rounds`` and the clock's setting.

    Raises:
        InfeasibleBudget: if the fastest plan, which is timed as well, is too slow, or no plan that was timed is faster
            than the dense network by more than `AIM`, or other bounds cannot be met.
    """
    assert budget.ns is not None
    wanted, relative = budget.ns, target <= 1
    everything, bounded = plan.space.everything(), budget.macs is not None or budget.params is not None
    attempts: list[Attempt] = []

    def over(reading: Reading) -> float:
        return reading.share * clock.dense_ns / wanted if relative else reading.ns / wanted

    def attempt(planned_ns: float) -> Attempt:
        floored = False
        try:
            kept = plan.allocate(0.0, dataclasses.replace(budget, ns=planned_ns))
        except InfeasibleBudget as found:
            if found.floor.ns <= planned_ns:
                raise
            kept, floored = plan.allocate(0.0, dataclasses.replace(budget, ns=found.floor.ns)), True
        cost = plan.space.cost(kept)
        spare = kept == everything or (bounded and cost.ns < (1 - TOLERANCE) * planned_ns)
        known = next((each for each in reversed(attempts) if each.kept == kept), None)
        if known is not None:
            return dataclasses.replace(known, floored=floored, spare=spare)
        reading = clock.read(plan.sketch(kept))
        return Attempt(kept, cost, reading, over(reading), floored, spare)

    def confirmed(once: Attempt) -> Attempt:
        if once.confirmed:
            return once
        reading = once.reading.mean(clock.read(plan.sketch(once.kept), anew=True))
        return dataclasses.replace(once, reading=reading, over=over(reading), confirmed=True)

    planned_ns = wanted
    with bar(description="meeting the budget of time", total=ROUNDS, unit="plan") as shown:
        while len(attempts) < ROUNDS:
            last = attempt(planned_ns)
            attempts.append(confirmed(last) if last.settles else last)
            shown.update()
            if attempts[-1].settles:
                break
            planned_ns = next_target([(max(1, each.cost.ns), each.over) for each in attempts])
    while not (best := min(attempts, key=_rank)).confirmed:
        attempts[attempts.index(best)] = confirmed(best)
    # A gain that another run of the clock may deny is none.
    gains_nothing = best.reading.share > 1 - AIM
    if best.over > 1 + TOLERANCE and (gains_nothing or any(each.floored for each in attempts)):
        ns = best.reading.share * clock.dense_ns if relative else best.reading.ns
        raise InfeasibleBudget(best.cost._replace(ns=round(ns)), gains_nothing=gains_nothing)
    met = best.over <= 1 + TOLERANCE and (best.over >= 1 - TOLERANCE or best.spare)
    dense_ns = best.reading.dense_ns
    # What was read before is told as it were in the run of the clock that timed the cut network.
    slower = dense_ns / clock.dense_ns if relative else 1.0
    record = {
        "target": target,
        "target_ms": wanted * slower / NS_PER_MS,
        "predicted_ms": best.cost.ns * slower / NS_PER_MS,
        "realised_ms": best.reading.ns / NS_PER_MS,
        "dense_ms": dense_ns / NS_PER_MS,
        "met": met,
        "rounds": len(attempts),
        **clock.setting,
    }
    return list(best.kept), record


def _rank(attempt: Attempt) -> tuple[bool, float]:
    """What is not too slow comes first, then the nearest."""
    return attempt.over > 1 + TOLERANCE, abs(math.log(attempt.over))


def next_target(tried: Sequence[tuple[float, float]]) -> float:
    """The target of the next plan, given what plans expected and what they came to over what is wanted (pure).

    Between the nearest that came out too fast and the nearest that came out too slow it is where a line through both,
    in logarithms, says; at least a tenth of the way from either. Without such a pair the last one is corrected in
    proportion, by a factor of `LARGEST_STEP` at most.
    """
    fast = max((expected for expected, over in tried if over <= 1), default=None)
    slow = min((expected for expected, over in tried if over > 1), default=None)
    if fast is None or slow is None:
        expected, over = tried[-1]
        return expected / min(max(over, 1 / LARGEST_STEP), LARGEST_STEP)
    overs = dict(tried)
    low, high = -math.log(overs[fast]), math.log(overs[slow])
    way = min(max(low / (low + high), 0.1), 0.9)
    return math.exp(math.log(fast) + way * (math.log(slow) - math.log(fast)))


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless a record that was read from a file has all that `told` needs."""
    for name in ("target", "target_ms", "predicted_ms", "realised_ms", "dense_ms"):
        value_at(record, name, float, low=1e-9)
    for name in ("batch", "threads"):
        value_at(record, name, int, low=1)
    value_at(record, "engine", str)
    value_at(record, "met", bool)


def told(record: Mapping[str, Any]) -> str:
    """A record for the user, in one sentence; a budget that is missed is called so."""
    share = record["realised_ms"] / record["dense_ms"]
    wanted = f"{record['target']:g} of it" if record["target"] <= 1 else f"{record['target']:g} ms"
    missed = "" if record["met"] else "budget of time missed: "
    return (
        f"{missed}a batch of {record['batch']} takes {record['realised_ms']:.4g} ms deployed ({record['engine']}, "
        f"{record['threads']} threads), {share:.3f} of the dense network's {record['dense_ms']:.4g} ms; "
        f"wanted {wanted}, predicted {record['predicted_ms']:.4g} ms"
    )
