"""BCNet, widths by an evolution in a network that was trained at all of them (Su et al. 2021).

Each step trains the left and the right of drawn widths, see `learning`; the losses of that give a prior, from which an
evolution starts that compares widths on validation images. What is found is trained anew, from new weights.
"""

from __future__ import annotations

from functools import partial

import torch

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.models.copies import copied
from hybridprune.processes import json_from_first
from hybridprune.progress_bar import bar
from hybridprune.pruning.budget.space import InfeasibleBudget
from hybridprune.pruning.channels.scores.magnitude import uniform
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods.bcnet.bins import LEFT, RIGHT
from hybridprune.pruning.methods.bcnet.choices import WidthChoices, Widths
from hybridprune.pruning.methods.bcnet.evolution import Evolution, evolve
from hybridprune.pruning.methods.bcnet.learning import Bilateral, WidthLearning
from hybridprune.pruning.methods.bcnet.masks import attach_record, attach_widths, show, take_record
from hybridprune.pruning.methods.bcnet.prior import mean_losses, width_prior
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining, Sparsity, Target
from hybridprune.pruning.sparse_training.width_macs import WidthMacs
from hybridprune.store.seeds import generator


def prepare(target: Target, options: SparsityOptions) -> Drive:
    """Give the groups masks of widths and train both sides; UserError without a reachable budget or without an epoch.

    The budget has to be one of FLOPs, and of nothing else.
    """
    budget = target.budget
    if budget is None or budget.macs is None or budget.params is not None:
        raise UserError("--method bcnet: searches widths within a budget of FLOPs; give --target_flops, and no other")
    if not options.sparse_epochs:
        raise UserError("--sparse_epochs 0: --method bcnet learns in them what widths are worth; give some")
    if options.sparsity_weight is not None:
        raise UserError(f"--sparsity_weight {options.sparsity_weight}: --method bcnet adds nothing to the loss")
    try:
        WidthChoices.of(target.space, budget, options.bcnet_bins)
    except InfeasibleBudget as floor:
        whole = target.space.cost(target.space.everything())
        raise UserError(
            f"--target_flops: below what the least bins of every group cost, of the network that is to be cut, "
            f"{floor.of(whole)}; give more, or more --bcnet_bins"
        ) from floor
    masks = attach_widths(target.model, target.groups, options.bcnet_bins)
    records = attach_record(target.model, masks, options.bcnet_losses)
    own = list(masks.values())
    learning = WidthLearning(own, records, target.seed)
    around = partial(Bilateral, masks=own, learning=learning)
    return Drive(learning, metrics=learning.metrics, around=around)


def select(target: Target, options: SparsityOptions) -> Removal | None:
    """The channels right of the widths that are found, while the record of losses goes; None without a training."""
    records = take_record(target.model, target.groups)
    if records is None:
        return None
    assert target.budget is not None, "refused before the training"
    choices = WidthChoices.of(target.space, target.budget, options.bcnet_bins)
    kept = choices.filled(_searched(target, options, choices, [mean_losses(record) for record in records]))
    gone = {g.name: [*range(number, g.channels)] for g, number in zip(target.groups, kept, strict=True)}
    return json_from_first(lambda: gone)  # should processes have rounded differently


def _searched(target: Target, options: SparsityOptions, choices: WidthChoices, losses: list[torch.Tensor]) -> Widths:
    """The widths that an evolution finds on validation images, by the mean of both sides."""
    assert target.judge is not None and choices.budget.macs is not None
    judge, source = target.judge, generator(target.seed, "evolution of widths")
    priors = width_prior(
        [own[least - 1 :] for own, least in zip(losses, choices.least, strict=True)],
        [torch.tensor(choices.sizes(group)) for group in range(len(losses))],
        WidthMacs.of(target.space, torch.device("cpu")),
        choices.budget.macs,
    )
    model = copied(target.model)
    masks = [*attach_widths(model, target.groups, options.bcnet_bins).values()]

    def draw() -> list[int]:
        drawn = [int(torch.multinomial(prior, 1, generator=source)) for prior in priors]
        return [least + more for least, more in zip(choices.least, drawn, strict=True)]

    evolution = Evolution(options.bcnet_population, options.bcnet_generations)
    total = evolution.population * evolution.generations
    with bar(description="search", total=total, unit="network") as shown:

        def fitness(widths: Widths) -> float:
            worth = 0.0
            for side in (LEFT, RIGHT):
                show(masks, side, widths)
                worth += judge(model) / 2
            shown.update()
            return worth

        return evolve(evolution, draw, lambda widths: choices.repaired(widths, source), fitness, source)


METHOD = ChannelMethod(
    uniform,
    relative=True,
    sparsity=Sparsity(before=SparseTraining(prepare, fresh=True), conclude=fold_masks, select=select, anew=True),
    coupled=True,
)
