"""The cuts of stage 2, one after another: their budgets, and the bring-back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import nn

from hybridprune.ambient import seeded
from hybridprune.config import PruneConfig
from hybridprune.errors import UserError
from hybridprune.latency.network_clock import DeployedClock
from hybridprune.measure.cost import count
from hybridprune.models.copies import copied
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.budget.bring_back import Pool, bring_back
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.clock import NetworkClock
from hybridprune.pruning.effective_target import EffectiveTarget
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.pruning.pipeline import Cuts, CutState, Pipeline, phases_of
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.refusal import refusal_of
from hybridprune.pruning.sparse_training.protocol import Sparsity
from hybridprune.pruning.within_time import told
from hybridprune.stages.images import RunImages
from hybridprune.stages.prunable import PrunableGated
from hybridprune.stages.setup import to_device, unpruned
from hybridprune.store.seeds import generator

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Cutting(Cuts[GatedNetwork]):
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
    clock: NetworkClock | None = None
    measurements: MutableMapping[str, Any] | None = None
    """Of the parent, for runs that differ in their budgets alone; see `PrunableGated`."""
    wanted: EffectiveTarget | None = None
    """The effective sparsity of the last cut."""
    living: int = 0
    """Of the parent's weights, where that is wanted."""

    @staticmethod
    def of(
        config: PruneConfig,
        images: RunImages,
        network: NetworkSpec,
        net: GatedNetwork,
        dense: Mapping[str, int],
        measurements: MutableMapping[str, Any] | None = None,
    ) -> Cutting:
        """The cuts that start from ``net``, which ``network`` describes; the others as in the fields of these names."""
        counted = count(net, config.data.resize)
        start = Cost(counted.backbone_macs, counted.backbone_params)
        channels, clock = layer_channels(unpruned(network)), None
        if config.cut.target_latency is not None:
            clock = _clock(config, images, network, net)
            share = clock.read(net).share if network.edits else 1.0
            start = start._replace(ns=round(share * clock.dense_ns))
        wanted, living = None, 0
        if (sparsity := config.cut.target_effective) is not None:
            image = torch.zeros(1, 3, config.data.resize, config.data.resize, device=images.device)
            wanted = EffectiveTarget.of(sparsity, unpruned(network), attrgetter("backbone"), image)
            living = wanted.live(net)
        return Cutting(config, images, dense, start, channels, clock, measurements, wanted, living)

    @property
    def sparsity(self) -> Sparsity:
        """The trainings of the method before it cuts."""
        return sparsity_of(self.config.cut.method)

    def pipeline(self, net: GatedNetwork) -> Pipeline[GatedNetwork]:
        """All phases of a run that starts from ``net``; UserError if its method has one cut and more are asked for."""
        config, method = self.config, self.sparsity
        if method.trainings and self.cuts > 1:
            raise UserError(
                f"--max_iter {config.stage.max_iter}, --back_ratio {config.stage.back_ratio}: --method "
                f"{config.cut.method} trains towards one cut; give 1 and 0"
            )
        return Pipeline(
            cuts=self,
            phases=phases_of(method, self.cuts, config.cut.cut_weights == "imitate"),
            options=config.cut,
            curvature=config.curvature,
            sparsity=config.sparsity,
            seed=config.run.seed,
            initial=copy.deepcopy(net.state_dict()),
        )

    @property
    def cuts(self) -> int:
        """The number of cuts."""
        return self.config.stage.max_iter * self.per_iteration

    @property
    def per_iteration(self) -> int:
        """Cuts of one iteration."""
        return 2 if self.config.stage.back_ratio else 1

    def brings_back(self, cut: int) -> bool:
        """Whether units come back after this cut."""
        return self.per_iteration == 2 and cut % 2 == 0

    def network(self, model: GatedNetwork, cut: int) -> PrunableGated:
        """The network before this cut."""
        # Before its first cut a network is the parent, unless a training has changed it.
        kept = self.measurements if cut == 0 and not self.sparsity.trainings else None
        return PrunableGated(model, self.images, self.config, self.channels, cut, kept)

    def budget(self, cut: int) -> Budget | None:
        """The budget of the cut's iteration, on a geometric path from the parent to the target; None without a target.

        Iteration i of n, from 1, may cost ``start (target / start)^(i / n)``, and never more than the start.
        """
        options = self.config.cut
        target = Budget.of(options.target_flops, options.target_params, self._dense, options.target_latency)
        if target is None:
            return None
        share = (cut // self.per_iteration + 1) / self.config.stage.max_iter
        return Budget(*(_between(*each, share) for each in zip(self.start, target.bounds, strict=True)))

    def effective(self, cut: int) -> EffectiveTarget | None:
        """The target of the cut's iteration, on the same path of what lives."""
        if self.wanted is None:
            return None
        share = (cut // self.per_iteration + 1) / self.config.stage.max_iter
        return dataclasses.replace(self.wanted, most=_path(self.living, self.wanted.most, share))

    def decide(self, plan: Plan, cut: int, state: CutState) -> tuple[list[int], CutState]:
        """Kept units of each set in this cut, with those that come back; raises InfeasibleBudget."""
        options = self.config.stage
        kept, latency = self._allocate(plan, cut, state)
        pool = Pool(state.lost)
        if self.brings_back(cut):
            pool = pool.after(plan.space, kept, options.pool_momentum)
            source = generator(self.config.run.seed, "bring-back", cut)
            state = CutState(pool.lost, sum(kept), latency=latency)
            return bring_back(plan.space, kept, pool, options.back_ratio, source), state
        return kept, CutState(pool.lost, sum(kept), latency=latency)

    def refusal(self, floor: InfeasibleBudget) -> UserError:
        """The refusal of a budget below the floor, in flags."""
        return refusal_of(self.config.cut, floor, self._dense)

    def epochs(self, cut: int, compression: float) -> int:
        """The epochs of fine-tuning after a cut."""
        options = self.config.stage
        if options.iter_epochs is not None:
            return self._of_iteration(options.iter_epochs, cut)
        return max(0, round(options.epochs_start + (options.epochs_end - options.epochs_start) * compression))

    def lr_factor(self, cut: int, compression: float) -> float:
        """The learning rate over ``lr`` after a cut: the iteration's, with ``interpolation`` times 10 to 1.

        This factor is of the training of what came back, and falls with the compression.
        """
        lrs, lr = self.config.stage.iter_lrs, self.config.optim.lr
        own = 1.0 if lrs is None else self._of_iteration(lrs, cut) / lr
        return own * (10.0 - 9.0 * compression if self.config.stage.interpolation and self.brings_back(cut) else 1.0)

    def ratio(self, cut: int) -> float:
        """The share of the units that go in a cut, where no budget says it."""
        ratios = self.config.stage.iter_ratios
        # With a budget nothing reads it.
        return (self.config.cut.prune_ratio or 0.0) if ratios is None else self._of_iteration(ratios, cut)

    def _of_iteration(self, values: Sequence[N], cut: int) -> N:
        """The entry for the iteration of a cut; a single one is for all."""
        return values[0] if len(values) == 1 else values[cut // self.per_iteration]

    def _allocate(self, plan: Plan, cut: int, state: CutState) -> tuple[list[int], dict[str, Any] | None]:
        budget, ratio = self.budget(cut), self.ratio(cut)
        # What was selected before a training goes as it was selected.
        effective = self.effective(cut) if state.removed is None else None
        if budget is None and self.per_iteration == 2 and cut % 2:
            # The second cut of an iteration takes away what came back.
            ratio = max(0.0, 1 - state.units / sum(plan.space.everything()))
        return self.allocate(plan, ratio, budget, self.config.cut.target_latency, effective)

    @property
    def _dense(self) -> Cost:
        return Cost(self.dense["macs"], self.dense["params"], 0 if self.clock is None else self.clock.dense_ns)


def _between(start: int, target: float | None, share: float) -> float | None:
    return None if target is None else _path(start, target, share)


def _path(start: int, target: float, share: float) -> float:
    return min(start * (target / start) ** share, start) if start else 0.0


def _clock(config: PruneConfig, images: RunImages, network: NetworkSpec, net: GatedNetwork) -> DeployedClock:
    """The clock of the backbone, all of its blocks executed, beside the unpruned one: its weights do not matter."""
    if network.edits:
        with seeded(0):
            dense = to_device(dataclasses.replace(network, edits=()).build(), images.device, images.channels_last)
    else:
        dense = copied(net)
    image = torch.zeros(1, 3, config.data.resize, config.data.resize, device=images.device)
    backbone = attrgetter("backbone")
    return DeployedClock.of(backbone(dense), backbone, image, config.latency, config.cut.method)


def layer_channels(unpruned: GatedNetwork) -> dict[str, int]:
    """Outputs of each convolution and linear layer, by name."""
    return {
        name: module.weight.shape[0]
        for name, module in unpruned.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def plan_lines(plan: Plan, kept: Sequence[int], state: CutState, trains: bool) -> list[str]:
    """A plan for ``--dry-run`` and what it comes to; ``trains``: the network will be another one by then."""
    when = " (of the parent as it is; the run trains it towards sparsity first)" if trains else ""
    time = [] if state.latency is None else [told(state.latency)]
    return [f"plan of the first iteration{when}:", *plan.describe(kept), *time]
