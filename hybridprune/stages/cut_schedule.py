"""What stage 2 cuts and when: its phases, the gated network as a subject, its budget, and the bring-back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import PruneConfig
from hybridprune.curvature.shard import ALONE, Shard
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.bring_back import Pool, bring_back
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.make_plan import propose, sparse_target, sparsity_of
from hybridprune.pruning.plan import Proposal
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining, Sparsity, Target
from hybridprune.pruning.subject import Subject
from hybridprune.stages.images import RunImages
from hybridprune.store.seeds import generator, stream_seed

CURVATURE_BATCH = 128
"""Of small images; of large ones no more than an evaluation takes."""
GATES = "gate.*"


@dataclass(frozen=True)
class CutState:
    """What a later cut needs of the earlier ones."""

    lost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The bring-back pool."""
    units: int = 0
    """How many units the last cut left, before any came back."""
    removed: Removal | None = None
    """The channels that were selected to go, before the training that knows them."""
    gap: Mapping[str, Mapping[str, float]] | None = None
    """Of a network that was trained for its cut: accuracy and loss on validation just before and just after it."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, the inverse of ``CutState(**record)``."""
        return {"lost": dict(self.lost), "units": self.units, "removed": self.removed, "gap": self.gap}


@dataclass(frozen=True)
class Phase:
    """One training of stage 2, and what precedes it."""

    cut: int
    """The number of the cut that precedes it, or that it prepares."""
    sparse: SparseTraining | None = None
    """Nothing is cut before it: it trains towards sparsity."""
    selects: bool = False
    """Channels are selected before it, but not yet cut."""


@dataclass(frozen=True)
class Cutting:
    """The cuts of one run. Each iteration has one, or two where some of what the first removed comes back.

    ``cut`` counts them. A method that trains towards sparsity has one cut, after these trainings.
    """

    config: PruneConfig
    images: RunImages
    dense: Mapping[str, int]
    """Parameters and MACs of the unpruned backbone, which shares refer to."""
    start: Cost
    """Of the parent's backbone."""
    channels: Mapping[str, int]
    """Outputs of each layer of the unpruned network, by name."""

    @property
    def sparsity(self) -> Sparsity:
        """What the method does before it cuts."""
        return sparsity_of(self.config.cut.method)

    @property
    def schedule(self) -> list[Phase]:
        """The trainings in their order; UserError if the method has one cut and more are asked for."""
        method = self.sparsity
        sparse = [Phase(0, training, selects=training is method.after) for training in method.trainings]
        if sparse and self.cuts > 1:
            raise UserError(
                f"--max_iter {self.config.stage.max_iter}, --back_ratio {self.config.stage.back_ratio}: --method "
                f"{self.config.cut.method} trains towards one cut; give 1 and 0"
            )
        return [*sparse, *(Phase(cut) for cut in range(self.cuts))]

    @property
    def cuts(self) -> int:
        """How many cuts there are."""
        return self.config.stage.max_iter * self.per_iteration

    @property
    def per_iteration(self) -> int:
        """Cuts of one iteration."""
        return 2 if self.config.stage.back_ratio else 1

    def brings_back(self, cut: int) -> bool:
        """Whether units come back after this cut."""
        return self.per_iteration == 2 and cut % 2 == 0

    def propose(self, net: GatedNetwork, cut: int, removed: Removal | None = None) -> Proposal:
        """Measure the network and score its units; ``removed`` has been selected for this cut already."""
        config = self.config
        subject = self._subject(net, cut)
        with self._refused_budget():
            return propose(subject, config.cut, config.curvature, config.sparsity, self._budget(cut), removed)

    def target(self, net: GatedNetwork, state: CutState) -> Target:
        """The network as what trains it towards sparsity sees it."""
        with self._refused_budget():
            return sparse_target(self._subject(net, 0), self.config.cut, self._budget(0), state.removed or {})

    def decide(self, proposal: Proposal, cut: int, state: CutState) -> tuple[list[int], CutState]:
        """How many units each set keeps in this cut; UserError if the budget cannot be reached."""
        options = self.config.stage
        kept = self._allocate(proposal, cut, state)
        pool = Pool(state.lost)
        if self.brings_back(cut):
            pool = pool.after(proposal.space, kept, options.pool_momentum)
            source = generator(self.config.run.seed, "bring-back", cut)
            state = CutState(pool.lost, sum(kept))
            return bring_back(proposal.space, kept, pool, options.back_ratio, source), state
        return kept, CutState(pool.lost, sum(kept))

    def lr_factor(self, cut: int, compression: float) -> float:
        """The learning rate over ``lr`` after a cut: a bring-back training's goes from 10 to 1 with the compression."""
        return 10.0 - 9.0 * compression if self.config.stage.interpolation and self.brings_back(cut) else 1.0

    def _allocate(self, proposal: Proposal, cut: int, state: CutState) -> list[int]:
        options, space = self.config.cut, proposal.space
        budget = self._budget(cut)
        ratio = options.prune_ratio
        if budget is None and self.per_iteration == 2 and cut % 2:
            # The second cut of an iteration takes away what came back.
            ratio = max(0.0, 1 - state.units / sum(space.everything()))
        with self._refused_budget():
            return proposal.allocate(ratio, budget)

    @contextmanager
    def _refused_budget(self) -> Iterator[None]:
        """Tell the user what can be reached."""
        options = self.config.cut
        try:
            yield
        except InfeasibleBudget as floor:
            raise UserError(
                f"--target_flops {options.target_flops}, --target_params {options.target_params}: below what "
                f"--prune_ratio_limit {options.prune_ratio_limit} allows; {floor.of(self._dense)}"
            ) from floor

    def _budget(self, cut: int) -> Budget | None:
        """This iteration's budget, on a geometric path from the parent to the target; None without a target."""
        target = Budget.of(self.config.cut.target_flops, self.config.cut.target_params, self._dense)
        if target is None:
            return None
        share = (cut // self.per_iteration + 1) / self.config.stage.max_iter
        return Budget(_between(self.start.macs, target.macs, share), _between(self.start.params, target.params, share))

    @property
    def _dense(self) -> Cost:
        return Cost(self.dense["macs"], self.dense["params"])

    def _subject(self, net: GatedNetwork, cut: int) -> Subject:
        config, size = self.config, self.config.data.resize
        example = torch.zeros(1, 3, size, size, device=self.images.device)

        def measure(network: nn.Module) -> Cost:
            assert isinstance(network, GatedNetwork)
            cost = count(network, size)
            return Cost(cost.backbone_macs, cost.backbone_params)

        def sample(images: int, purpose: str) -> Iterable[tuple[Tensor, Tensor]]:
            size = min(CURVATURE_BATCH, self.images.eval_batch)
            return _Pairs(self.images.sample(images, size, f"{purpose}/{cut}"))

        return Subject(
            model=net,
            logits=lambda images: net(images, mode="executed").logits,
            run=execute_all,
            example=example,
            exclude=(GATES, *config.cut.exclude),
            sample=sample,
            measure=measure,
            counts=lambda name: name.startswith("backbone."),
            channels=self.channels,
            seed=stream_seed(config.run.seed, f"labels/{cut}"),
            shard=Shard.current() if config.stage.pruner_id == 1 else ALONE,
        )


def execute_all(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Every block and every gate, whose inputs are a block's outputs and go with its channels."""
    assert isinstance(net, GatedNetwork)
    routed = net(images, images.new_ones(len(images), net.num_gates))
    return routed.logits, routed.gate_logits


@dataclass(frozen=True)
class _Pairs:
    batches: Any

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((batch.images, batch.labels) for batch in self.batches)


def _between(start: int, target: float | None, share: float) -> float | None:
    return None if target is None else min(start * (target / start) ** share, start)


def layer_channels(unpruned: GatedNetwork) -> dict[str, int]:
    """Outputs of each convolution and linear layer, by name."""
    return {
        name: module.weight.shape[0]
        for name, module in unpruned.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def plan_lines(proposal: Proposal, kept: Sequence[int], trains: bool) -> list[str]:
    """A plan for ``--dry-run``; ``trains``: the network will be another one by then."""
    when = " (of the parent as it is; the run trains it towards sparsity first)" if trains else ""
    return [f"plan of the first iteration{when}:", *proposal.describe(kept)]
