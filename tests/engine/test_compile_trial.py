"""``--compile auto`` on a machine whose every step takes a time that is given: a clock and a compiler without noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.batch import Batch
from hybridprune.engine.compile_trial import LONG, STEPS, WARM_UP, Cost, Shape, Trial, pays
from hybridprune.engine.compiler import Switch
from hybridprune.processes import is_first
from tests.process_groups import together

USUAL, ODD = torch.zeros(4, 3), torch.zeros(2, 3)
TRIAL = WARM_UP + STEPS + 1 + 2 * STEPS
"""Steps of a whole trial."""


@dataclass
class Machine:
    """It has a clock, on which a step takes ``eager`` or ``compiled`` seconds, and a compiler."""

    eager: float = 1.0
    compiled: float = 0.5
    compiling: float = 100.0
    slower: float = 0.0
    """What a step adds to the times of all later ones, as a share of the first one's."""
    breaks: bool = False
    now: float = 0.0
    ran: list[str] = field(default_factory=list)
    """The steps, ``e`` or ``c``."""
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    """For which something was compiled."""

    def work(self, seconds: float) -> None:
        self.now += seconds * (1 + self.slower * len(self.ran))

    def step(self, images: torch.Tensor) -> None:
        self.work(self.eager)
        self.ran.append("e")

    def compile(self, run: Callable[..., Any]) -> Callable[..., Any]:
        assert run == self.step

        def compiled(images: torch.Tensor) -> None:
            if self.breaks:
                raise RuntimeError("backend raised:\nno such operator\nmore")
            if images.shape not in self.shapes:
                self.work(self.compiling)
                self.shapes.add(images.shape)
            self.work(self.compiled)
            self.ran.append("c")

        return compiled

    def train(self, steps: int, known: Known, images: Callable[[int], torch.Tensor] = lambda step: USUAL) -> str:
        """The steps of a training that starts now, in two epochs; the rehearsal is none of them."""
        switch = Switch(self.step)
        trial = Trial(switch, steps, known, lambda: self.now, lambda: known.works)

        def rehearse(batch: Batch) -> None:
            switch(batch.images)
            self.ran.pop()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", self.compile)
            for epoch in (range(steps // 2), range(steps // 2, steps)):
                batches = (Batch(images(step), images(step)) for step in epoch)
                for batch in trial.timed(batches, rehearse):
                    switch(batch.images)
                    trial.stepped()
                    self.now += 1000  # validation, between two steps
                self.now += 1000
        assert trial.over == (steps > 0) and trial.left == 0
        self.now -= 1000 * (steps + 2)
        return "".join(self.ran)


@dataclass
class Known:
    cost: Cost | None = None
    works: bool = True
    kept: list[Cost] = field(default_factory=list)

    def expected(self, shape: Shape) -> Cost | None:
        assert shape == ((4, 3),)
        return self.cost

    def keep(self, shape: Shape, cost: Cost) -> None:
        assert shape == ((4, 3),)
        self.kept.append(cost)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_compiling_pays_where_it_saves_more_than_it_takes() -> None:
    assert pays(201, 1.0, Cost(100.0, 0.5)) and not pays(200, 1.0, Cost(100.0, 0.5))
    assert not pays(10**9, 1.0, Cost(0.0, 1.0))
    assert pays(600, LONG / 600, None) and not pays(599, LONG / 600, None)


def test_what_pays_is_compiled_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    known = Known(Cost(100.0, 0.5))
    ran = Machine().train(300, known)
    assert ran == "e" * (WARM_UP + STEPS) + "c" + "ec" * STEPS + "c" * (300 - TRIAL)
    assert known.kept == [pytest.approx((100.0, 0.5))]
    decided, measured = lines(capsys)
    assert "289 steps of 1 s" in decided and "100.0 s and to leave 50%" in decided and decided.endswith(": compiling")
    assert "took 100.0 s, which 200 steps save" in measured and "the 272 left are compiled" in measured


@pytest.mark.parametrize(
    ("cost", "steps", "told"),
    [
        (Cost(100.0, 0.5), 200 + WARM_UP + STEPS, "200 steps of 1 s are left, 200 s in all; "),
        (None, int(LONG) + WARM_UP + STEPS - 1, "nothing is known of compiling it"),
        (Cost(0.0, 0.1), TRIAL - 1, f"{TRIAL - 1} steps are left, too few"),
        (Cost(0.0, 1.0), 1000, "leave 100% of a step"),
    ],
)
def test_what_does_not_pay_is_not_tried(
    cost: Cost | None, steps: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine()
    assert machine.train(steps, Known(cost)) == "e" * steps and machine.now == steps
    (line,) = lines(capsys)
    assert told in line and line.endswith("not compiled")


def test_a_network_of_which_nothing_is_known_is_tried_in_a_long_training() -> None:
    ran = Machine().train(int(LONG) + WARM_UP + STEPS, Known())
    assert ran.endswith("c" * 100)


def test_steps_that_compiled_are_no_faster_are_not_compiled_again(capsys: pytest.CaptureFixture[str]) -> None:
    known = Known()
    ran = Machine(compiled=1.2).train(1000, known)
    assert ran == "e" * (WARM_UP + STEPS) + "c" + "ec" * STEPS + "e" * (1000 - TRIAL)
    assert known.kept[0].share == pytest.approx(1.2), "the next training knows"
    assert lines(capsys)[1].endswith(f"the {1000 - TRIAL} left are not compiled") and "no steps save" not in ran


@settings(max_examples=40)
@given(
    st.floats(0.1, 10), st.floats(0.01, 20), st.floats(0, 500), st.integers(0, 400),
    st.none() | st.builds(Cost, st.floats(0, 500), st.floats(0.1, 2)),
)  # fmt: skip
def test_a_training_takes_no_longer_than_without_but_for_the_trial(
    eager: float, compiled: float, compiling: float, steps: int, cost: Cost | None
) -> None:
    machine = Machine(eager, compiled, compiling)
    machine.train(steps, Known(cost))
    trial = compiling + compiled + (STEPS + 1) * max(0.0, compiled - eager)
    assert machine.now <= steps * eager + trial + 1e-6 and len(machine.ran) == steps


def test_steps_that_are_compared_take_turns_so_that_a_busy_machine_slows_both() -> None:
    """Steps get slower and slower, by more than compiling makes them faster."""
    machine = Machine(compiled=0.9, compiling=1.0, slower=0.05)
    assert machine.train(60, Known(Cost(1.0, 0.5))).endswith("c" * 20)


def test_a_batch_of_another_shape_is_neither_compiled_nor_timed() -> None:
    """Each fourth batch is smaller, and slow."""
    known, machine = Known(Cost(1.0, 0.5)), Machine()
    images = lambda step: ODD if step % 4 == 3 else USUAL  # noqa: E731
    machine.step = slow_if_odd(machine)  # type: ignore[method-assign]
    ran = machine.train(400, known, images)
    assert set(ran[3::4]) == {"e"} and machine.shapes == {USUAL.shape}
    assert set(ran[200::4]) == {"c"} and known.kept[0].share == pytest.approx(0.5)


def slow_if_odd(machine: Machine) -> Callable[[torch.Tensor], None]:
    def step(images: torch.Tensor) -> None:
        machine.work(50.0 if len(images) == 2 else machine.eager)
        machine.ran.append("e")

    return step


def test_batches_that_all_differ_are_not_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Machine().train(100, Known(Cost(0.0, 0.1)), lambda step: torch.zeros(4 + step, 3))
    assert ran == "e" * 100 and "no two batches are alike" in lines(capsys)[0]


@pytest.mark.parametrize("what", ["no compiler", "no such network"])
def test_where_nothing_compiles_the_training_goes_on(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    machine, known = Machine(breaks=what == "no such network"), Known(Cost(0.0, 0.1), works=what != "no compiler")
    assert machine.train(100, known) == "e" * 100 and known.kept == []
    told = lines(capsys)[1:]
    assert len(told) == machine.breaks and all("not compile: backend raised: no such operator" in line for line in told)


def test_all_processes_do_what_the_first_ones_clock_says(tmp_path: Path) -> None:
    """The second one's clock says that compiling takes longer, and its cache is empty."""

    def train() -> str:
        return Machine(compiled=0.5 if is_first() else 2.0).train(300, Known(Cost(1.0, 0.5) if is_first() else None))

    (_, one, _, said), (_, other, _, silent) = together(tmp_path, train)
    assert one == other and one.endswith("c" * 200)
    assert len(said.splitlines()) == 2 and silent == ""
