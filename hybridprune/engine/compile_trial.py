"""``--compile auto``: whether the rest of a training is compiled, by what compiling takes and what it saves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hybridprune.batch import Batch
from hybridprune.engine.compiler import Switch, reason, say
from hybridprune.measure.latency import Clock
from hybridprune.nested import tensors_in
from hybridprune.processes import count, json_from_first

WARM_UP, STEPS = 3, 8
"""Steps before the clock is read, and steps of each kind that it is read for."""
LONG = 600.0
"""Seconds without a compiler from which a network is tried of which nothing is known."""
EAGER, COMPILED, REHEARSAL = "eager", "compiled", "rehearsal"
Shape = tuple[tuple[int, ...], ...]
"""Of the tensors in what a network is given."""


class Cost(NamedTuple):
    """Seconds that compiling takes, and the share of a step that it leaves."""

    seconds: float
    share: float
    """A compiled step's time over that of one that is not."""


class Known(Protocol):
    """Costs that were measured before."""

    def expected(self, shape: Shape) -> Cost | None:
        """The cost of compiling for batches of this shape; None if nothing is known."""
        ...

    def keep(self, shape: Shape, cost: Cost) -> None:
        """Remember a measured cost."""
        ...


def pays(left: int, step: float, cost: Cost | None) -> bool:
    """Whether to compile with ``left`` steps to go, of ``step`` seconds each.

    With a known cost: ``left step (1 - share) > seconds``. Without one: ``left step >= LONG``.
    """
    if cost is None:
        return left * step >= LONG
    return left * step * (1 - cost.share) > cost.seconds


@dataclass
class Trial:
    """Times the steps of a training that has ``left`` of them to go, and sets ``switch`` for each.

    After `WARM_UP` steps it times `STEPS`. Unless `pays` says yes, that is all. Else it has the switch compiled in a
    rehearsal, a step that changes nothing, and times as many steps of both kinds, in turn. The rest is compiled if the
    median of those that were is the smaller one. Only batches of the first one's shape ever run compiled: another
    shape would be compiled anew. Where several processes train, all do what the first one's clock says.
    """

    switch: Switch
    left: int
    known: Known
    clock: Clock
    works: Callable[[], bool]
    """Whether anything compiles here, else it says so; it takes seconds, so it is asked before an attempt."""
    _shape: Shape | None = field(default=None, init=False)
    _course: Generator[str, float | None, bool] | None = field(default=None, init=False)
    _next: str = field(default=EAGER, init=False)
    _started: float = field(default=0.0, init=False)
    _usual: bool = field(default=False, init=False)
    """Whether the step's batch has the shape of the first one."""

    def timed(self, batches: Iterable[Batch], rehearse: Callable[[Batch], None]) -> Iterator[Batch]:
        """The ``batches``, each with the switch set for its step, whose end is to be told by `stepped`.

        ``rehearse`` does a step on a batch that changes nothing.
        """
        fetched = iter(batches)
        while True:
            if not self.over:
                self._started = self.clock()
            if (batch := next(fetched, None)) is None:
                return
            shape = tuple(tuple(tensor.shape) for tensor in tensors_in(batch.images))
            if self._shape is None:
                self._shape, self._course = shape, self._plan(shape)
                self._advance(None)
            self._usual = shape == self._shape
            if self._next == REHEARSAL and json_from_first(lambda usual=self._usual: usual):
                fetching = self.clock() - self._started
                self._advance(self._rehearsed(lambda batch=batch: rehearse(batch)))
                self._started = self.clock() - fetching
            self.switch.on = self._usual and self._next == COMPILED
            yield batch

    @property
    def over(self) -> bool:
        """Whether all is decided."""
        return self._shape is not None and self._course is None

    def stepped(self) -> None:
        """A step has ended."""
        self.left -= 1
        if self._course is not None and self._next != REHEARSAL:
            self._advance(self.clock() - self._started if self._usual else None)

    def _advance(self, seconds: float | None) -> None:
        """Give the plan the seconds of what it asked for, None if they say nothing, and take its next wish."""
        assert self._course is not None
        try:
            self._next = self._course.send(seconds)
        except StopIteration as end:
            self._next, self._course = COMPILED if end.value else EAGER, None

    def _rehearsed(self, rehearse: Callable[[], None]) -> float | None:
        """Seconds of compiling and a step; None where the network does not compile."""
        started = self.clock()
        self.switch.compile()
        try:
            rehearse()
        except Exception as error:  # whatever the back end raises
            if count() > 1:  # the others wait in the middle of a step
                raise
            say(f"warning: --compile auto is left out, the network does not compile: {reason(error)}")
            return None
        return self.clock() - started

    def _plan(self, shape: Shape) -> Generator[str, float | None, bool]:
        """Asks for steps and a rehearsal, gets their seconds, and ends with whether the rest is compiled."""
        if self.left <= WARM_UP + 3 * STEPS:
            say(f"compile auto: {self.left} steps are left, too few for a trial; they are not compiled")
            return False
        for _ in range(WARM_UP):
            yield EAGER
        eager = yield from self._medians(EAGER)
        if not json_from_first(lambda: self._tries(shape, eager[0]) and self.works()):
            return False
        if (rehearsal := (yield REHEARSAL)) is None:
            return False
        settling = yield COMPILED
        before, after = yield from self._medians(EAGER, COMPILED)
        return json_from_first(lambda: self._keeps(shape, rehearsal, settling, before, after))

    def _medians(self, *kinds: str) -> Generator[str, float | None, list[float | None]]:
        """Median seconds of `STEPS` steps of each kind, which take turns; None where no batch was as the first."""
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(STEPS):
            for kind in kinds:
                if (found := (yield kind)) is not None:
                    seconds[kind].append(found)
        return [statistics.median(each) if each else None for each in seconds.values()]

    def _tries(self, shape: Shape, step: float | None) -> bool:
        """Whether compiling is expected to pay, which one line says."""
        if step is None:
            say("compile auto: no two batches are alike, so nothing is compiled")
            return False
        cost = self.known.expected(shape)
        tries = pays(self.left, step, cost)
        expected = (
            f"nothing is known of compiling it, which is tried from {LONG:.0f} s on"
            if cost is None
            else f"compiling is expected to take {cost.seconds:.1f} s and to leave {cost.share:.0%} of a step"
        )
        say(
            f"compile auto: {self.left} steps of {step:.3g} s are left, {self.left * step:.0f} s in all; {expected}: "
            f"{'compiling' if tries else 'not compiled'}"
        )
        return tries

    def _keeps(
        self, shape: Shape, rehearsal: float, settling: float | None, before: float | None, after: float | None
    ) -> bool:
        """Whether compiled steps are faster, which one line says; what was measured is remembered."""
        if before is None or after is None:
            say("compile auto: hardly two batches are alike, so the rest is not compiled")
            return False
        # The rehearsal is a step as well, and the first one behind it may have had to compile something.
        seconds = max(0.0, rehearsal - after) + max(0.0, (settling or after) - after)
        self.known.keep(shape, Cost(seconds, after / before))
        saved = f"{math.ceil(seconds / (before - after))} steps save" if after < before else "no steps save"
        say(
            f"compile auto: compiling took {seconds:.1f} s, which {saved}; a step takes {after:.3g} s compiled and "
            f"{before:.3g} s otherwise: the {self.left} left are {'' if after < before else 'not '}compiled"
        )
        return after < before
