"""Static pruning in its one order: train towards sparsity, select, train on that, cut, recalibrate, fine-tune.

What is to be cut when (`Cuts`), and how a network is trained and kept (`Trainer`), is handed in: a call in memory and a
run of several cuts that can be resumed take the same way.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor, nn

from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.engine.initialise import initialise
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.precision import full_precision
from hybridprune.processes import count, json_from_first
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget
from hybridprune.pruning.clock import NetworkClock
from hybridprune.pruning.effective_target import EffectiveTarget, allocate_effective, check_reachable
from hybridprune.pruning.make_plan import make_plan, sparse_target, sparsity_of
from hybridprune.pruning.plan import ChannelPlan, Plan
from hybridprune.pruning.prunable import PrunableNetwork
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining, Sparsity, Target
from hybridprune.pruning.within_time import allocate_within_time

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Phase:
    """One training, and what precedes it."""

    cut: int
    """The number of the cut that precedes it, or that it prepares."""
    sparse: SparseTraining | None = None
    """Nothing is cut before it: it trains towards sparsity."""
    selects: bool = False
    """Channels are selected before it, but not yet cut."""
    cuts: bool = True
    """Whether the cut precedes it at once, if it does not train towards sparsity."""
    lesson: Literal["features", "logits"] | None = None
    """What of its parent the cut network learns; None: it is fine-tuned."""


def phases_of(method: Sparsity, cuts: int, imitates: bool = False) -> list[Phase]:
    """The trainings in their order: those that the method asks for, then one after each cut.

    With ``imitates`` two lessons come before it: the parent's features, then its logits.
    """
    sparse = [Phase(0, training, selects=training is method.after) for training in method.trainings]
    if not imitates:
        return [*sparse, *map(Phase, range(cuts))]
    taught = [
        [Phase(cut, lesson="features"), Phase(cut, cuts=False, lesson="logits"), Phase(cut, cuts=False)]
        for cut in range(cuts)
    ]
    return [*sparse, *itertools.chain(*taught)]


@dataclass(frozen=True)
class CutState:
    """The state of a pruning between its phases: what a later one needs of the earlier ones."""

    lost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The bring-back pool."""
    units: int = 0
    """How many units the last cut left, before any came back."""
    removed: Removal | None = None
    """The channels that were selected to go, before the training that knows them."""
    gap: Mapping[str, Mapping[str, float]] | None = None
    """Of a network that was trained for its cut: accuracy and loss on validation just before and just after it."""
    latency: Mapping[str, Any] | None = None
    """How the last cut meets a budget of time, see `LatencyRecord`."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, the inverse of ``CutState(**record)``."""
        record = {name: getattr(self, name) for name in ("units", "removed", "gap", "latency")}
        return {"lost": dict(self.lost), **record}


@dataclass(frozen=True)
class Cut(Generic[M]):
    """A network right after a cut, and what led to it."""

    model: M
    plan: Plan
    kept: Sequence[int]
    """Units of each of the plan's sets."""
    state: CutState


class Cuts(ABC, Generic[M]):
    """The cuts of a network, numbered from 0, and where each leads."""

    clock: NetworkClock | None
    """The clock of a budget that bounds time; None where none does."""

    @abstractmethod
    def network(self, model: M, cut: int) -> PrunableNetwork:
        """The network before a cut, with the images that it is measured on."""

    @abstractmethod
    def budget(self, cut: int) -> Budget | None:
        """The budget that a cut has to meet; None: it removes a share of the units."""

    @abstractmethod
    def effective(self, cut: int) -> EffectiveTarget | None:
        """The effective sparsity that a cut has to reach; None where none is wanted."""

    def allocate(
        self,
        plan: Plan,
        ratio: float,
        budget: Budget | None,
        target_latency: float | None,
        effective: EffectiveTarget | None = None,
    ) -> tuple[list[int], dict[str, Any] | None]:
        """Kept units of each set, and the record of a budget of time, if there is one; see `allocate_within_time`."""
        if effective is not None:
            return allocate_effective(plan, effective), None
        if budget is None or self.clock is None or target_latency is None:
            return plan.allocate(ratio, budget), None
        return allocate_within_time(plan, budget, self.clock, target_latency)

    @abstractmethod
    def decide(self, plan: Plan, cut: int, state: CutState) -> tuple[list[int], CutState]:
        """Kept units of each set of the plan, and the state for later cuts; raises InfeasibleBudget."""

    @abstractmethod
    def refusal(self, floor: InfeasibleBudget) -> UserError:
        """The budget and what could be reached, in the words of who gave it."""


class Trainer(ABC, Generic[M]):
    """Training between the cuts, with the place where a network is kept."""

    @abstractmethod
    def planned(self, plan: Plan) -> None:
        """Tell what will be left alone by a cut that is about to be made."""

    def timed(self, record: Mapping[str, Any]) -> None:
        """Tell how a cut that is about to be made meets a budget of time."""
        del record

    @abstractmethod
    def settle(self, model: M) -> M:
        """Make the network one that computes again, after a cut: its BatchNorms know other statistics."""

    @abstractmethod
    def train(self, model: M, number: int, state: CutState, drive: Drive | None) -> None:
        """Train the network in place in the phase of this number; its state is saved where it can be resumed."""

    def place(self, model: M) -> None:
        """Put layers that are new to the network where its others are, in place."""
        del model

    def begin(self, model: M, number: int) -> None:
        """Take note of the network with which a phase starts, which has plain layers only."""
        del model, number

    def validate(self, model: M) -> Mapping[str, float] | None:
        """Figures of the network just before and just after a cut; None where nothing asks for them."""
        del model
        return None


@dataclass(frozen=True)
class Pipeline(Generic[M]):
    """The phases of one pruning, in their order."""

    cuts: Cuts[M]
    phases: Sequence[Phase]
    options: CutOptions
    curvature: CurvatureOptions
    sparsity: SparsityOptions
    seed: int
    """Of newly initialised weights."""
    initial: Mapping[str, Tensor]
    """The weights before the first phase."""

    def run(
        self, trainer: Trainer[M], model: M, state: CutState, start: int = 0, resumed: bool = False
    ) -> tuple[M, CutState]:
        """The phases from the one numbered ``start``, in place where ``settle`` is; the network and what it has become.

        ``resumed``: the network and the state are already those with which that phase's training starts. Raises
        UserError if nothing can be cut or the budget cannot be reached.
        """
        for number in range(start, len(self.phases)):
            phase = self.phases[number]
            if number > start or not resumed:
                if phase.sparse is not None:
                    state = self._aim(model, phase, phase.sparse, state, first=number == 0)
                elif phase.cuts:
                    done = self.cut(trainer, model, phase.cut, state)
                    model, state = done.model, done.state
                # A cut layer has its weights in another memory format than a resumed run's, and kernels round by it.
                trainer.place(model)
            trainer.begin(model, number)
            drive = None
            if phase.sparse is not None:
                drive = self.drive(model, phase.sparse, state)
                trainer.place(model)
            trainer.train(model, number, state, drive)
            conclude = sparsity_of(self.options.method).conclude
            if phase.sparse is not None and conclude is not None:
                conclude(model)
                trainer.place(model)
        return model, state

    def cut(self, trainer: Trainer[M], model: M, cut: int, state: CutState) -> Cut[M]:
        """Plan and make one cut; the statistics of the network are those of its images again."""
        plan = self.make_plan(model, cut, state.removed)
        trainer.planned(plan)
        kept, state = self.decide(plan, cut, state)
        if state.latency is not None:
            trainer.timed(state.latency)
        before = trainer.validate(model) if sparsity_of(self.options.method).trainings else None
        with full_precision():
            plan.apply(kept)
        if before is not None and (after := trainer.validate(model)) is not None:
            state = dataclasses.replace(state, gap={"before": before, "after": after})
        if sparsity_of(self.options.method).cut_weights(self.options) == "scratch":
            initialise(model, self.seed, "cut")
        return Cut(trainer.settle(model), plan, kept, state)

    def make_plan(self, model: M, cut: int, removed: Removal | None = None) -> Plan:
        """Measure the network and score its units; ``removed`` has been selected for this cut already."""
        network = self.cuts.network(model, cut)
        with self._refused():
            budget, clock = self.cuts.budget(cut), self.cuts.clock
            return make_plan(network, self.options, self.curvature, self.sparsity, budget, removed, clock)

    def decide(self, plan: Plan, cut: int, state: CutState) -> tuple[list[int], CutState]:
        """Kept units of each set: in all processes what the first one decides; others may round differently."""
        with self._refused(plan.left_alone):
            kept, after = self.cuts.decide(plan, cut, state)
        if count() > 1:
            kept, record = json_from_first(lambda: [kept, after.to_json()])
            after = CutState(**record)
        return kept, after

    def drive(self, model: M, training: SparseTraining, state: CutState) -> Drive:
        """The drive of a training before the first cut; the network may get other layers, in place."""
        return training.prepare(self.target(model, state), self.sparsity)

    def target(self, model: M, state: CutState) -> Target:
        """The network as what trains it towards sparsity, before the first cut, sees it."""
        network = self.cuts.network(model, 0)
        with self._refused():
            found = sparse_target(network, self.options, self.cuts.budget(0), state.removed or {})
        if state.removed is None and (effective := self.cuts.effective(0)) is not None:
            check_reachable(effective, found)
        return found

    def _aim(self, model: M, phase: Phase, training: SparseTraining, state: CutState, first: bool) -> CutState:
        """Select what will go, if it is time, and put the network where the training starts."""
        if phase.selects:
            plan = self.make_plan(model, phase.cut)
            assert isinstance(plan, ChannelPlan)  # `sparse_target` refuses other methods
            kept, _ = self.decide(plan, phase.cut, state)
            state = dataclasses.replace(state, removed=json_from_first(lambda: plan.removed(kept)))
        if training.start == "parent":
            model.load_state_dict(self.initial)
        if first and training.starts_fresh(self.sparsity):
            initialise(model, self.seed, "sparse")
        return state

    @contextmanager
    def _refused(self, left_alone: Mapping[str, str] | None = None) -> Iterator[None]:
        """Tell the user what can be reached, and what is left alone."""
        try:
            yield
        except InfeasibleBudget as floor:
            known = left_alone or floor.left_alone
            told = InfeasibleBudget(floor.floor, known, gains_nothing=floor.gains_nothing)
            raise self.cuts.refusal(told) from floor
