"""What one iteration of stage 2 cuts: the gated network as a subject, its budget, and the bring-back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import PruneConfig
from hybridprune.curvature.shard import ALONE, Shard
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.bring_back import Pool, bring_back
from hybridprune.pruning.proposal import Proposal
from hybridprune.pruning.propose import propose
from hybridprune.pruning.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.subject import Subject
from hybridprune.stages.common import Images
from hybridprune.store.seeds import generator, stream_seed

CURVATURE_BATCH = 128
GATES = "gate.*"


@dataclass(frozen=True)
class CutState:
    """What a later cut needs of the earlier ones."""

    lost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The bring-back pool."""
    units: int = 0
    """How many units the last cut left, before any came back."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, the inverse of ``CutState(**record)``."""
        return {"lost": dict(self.lost), "units": self.units}


@dataclass(frozen=True)
class Cutting:
    """The cuts of one run. Each iteration has one, or two where some of what the first removed comes back."""

    config: PruneConfig
    images: Images
    dense: Mapping[str, int]
    """Parameters and MACs of the unpruned backbone, which shares refer to."""
    start: Cost
    """Of the parent's backbone."""
    channels: Mapping[str, int]
    """Outputs of each layer of the unpruned network, by name."""

    @property
    def phases(self) -> int:
        """How many cuts and trainings there are."""
        return self.config.stage.max_iter * self.per_iteration

    @property
    def per_iteration(self) -> int:
        """Cuts of one iteration."""
        return 2 if self.config.stage.back_ratio else 1

    def brings_back(self, phase: int) -> bool:
        """Whether units come back after this phase's cut."""
        return self.per_iteration == 2 and phase % 2 == 0

    def propose(self, net: GatedNetwork, phase: int) -> Proposal:
        """Measure the network and score its units."""
        return propose(self._subject(net, phase), self.config.cut, self.config.curvature)

    def decide(self, proposal: Proposal, phase: int, state: CutState) -> tuple[list[int], CutState]:
        """How many units each set keeps in this phase; UserError if the budget cannot be reached."""
        options = self.config.stage
        kept = self._allocate(proposal, phase, state)
        pool = Pool(state.lost)
        if self.brings_back(phase):
            pool = pool.after(proposal.space, kept, options.pool_momentum)
            source = generator(self.config.run.seed, "bring-back", phase)
            state = CutState(pool.lost, sum(kept))
            return bring_back(proposal.space, kept, pool, options.back_ratio, source), state
        return kept, CutState(pool.lost, sum(kept))

    def lr_factor(self, phase: int, compression: float) -> float:
        """This phase's learning rate over ``lr``: a bring-back training's goes from 10 to 1 with the compression."""
        return 10.0 - 9.0 * compression if self.config.stage.interpolation and self.brings_back(phase) else 1.0

    def _allocate(self, proposal: Proposal, phase: int, state: CutState) -> list[int]:
        options, space = self.config.cut, proposal.space
        budget = self._budget(phase)
        ratio = options.prune_ratio
        if budget is None and self.per_iteration == 2 and phase % 2:
            # The second cut of an iteration takes away what came back.
            ratio = max(0.0, 1 - state.units / sum(space.everything()))
        try:
            return proposal.allocate(ratio, budget)
        except InfeasibleBudget as floor:
            raise UserError(
                f"--target_flops {options.target_flops}, --target_params {options.target_params}: below what "
                f"--prune_ratio_limit {options.prune_ratio_limit} allows; {floor.of(self._dense)}"
            ) from floor

    def _budget(self, phase: int) -> Budget | None:
        """This iteration's budget, on a geometric path from the parent to the target; None without a target."""
        target = Budget.of(self.config.cut.target_flops, self.config.cut.target_params, self._dense)
        if target is None:
            return None
        share = (phase // self.per_iteration + 1) / self.config.stage.max_iter
        return Budget(_between(self.start.macs, target.macs, share), _between(self.start.params, target.params, share))

    @property
    def _dense(self) -> Cost:
        return Cost(self.dense["macs"], self.dense["params"])

    def _subject(self, net: GatedNetwork, phase: int) -> Subject:
        config, size = self.config, self.config.data.resize
        cost = count(net, size)
        example = torch.zeros(1, 3, size, size, device=self.images.device)

        def sample(images: int, purpose: str) -> Iterable[tuple[Tensor, Tensor]]:
            return _Pairs(self.images.sample(images, CURVATURE_BATCH, f"{purpose}/{phase}"))

        return Subject(
            model=net,
            logits=lambda images: net(images, mode="executed").logits,
            run=_execute_all,
            example=example,
            exclude=(GATES, *config.cut.exclude),
            sample=sample,
            cost=Cost(cost.backbone_macs, cost.backbone_params),
            counts=lambda name: name.startswith("backbone."),
            channels=self.channels,
            seed=stream_seed(config.run.seed, f"labels/{phase}"),
            shard=Shard.current() if config.stage.pruner_id == 1 else ALONE,
        )


def _execute_all(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
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


def plan_lines(proposal: Proposal, kept: Sequence[int]) -> list[str]:
    """A plan for ``--dry-run``."""
    return ["plan of the first iteration:", *proposal.describe(kept)]
