# pyright: strict, reportUnnecessaryIsInstance=false
"""A cascade of networks of the user's own, fitted to a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hybridprune.ambient import isolated
from hybridprune.api.cascaded import Cascaded, Member
from hybridprune.api.first_look import device_of
from hybridprune.api.pruned import Pruned
from hybridprune.caller import warn_caller
from hybridprune.config import CascadeOptions, CutOptions, RunOptions, argument_names, checked_value
from hybridprune.engine.plain import in_single, plain_copy, unwrapped
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.held import AnyNetwork, network_of
from hybridprune.models.origin import note_origin, origin_of
from hybridprune.models.routed import RoutedNetwork
from hybridprune.nested import on_device
from hybridprune.precision import full_precision
from hybridprune.pruning.budget.space import taken_as, target_macs
from hybridprune.report.bootstrap import paired_bootstrap

Policy = Literal["learned", "margin"]


@argument_names(own=("target_flops",))
@isolated()
@full_precision()
def cascade(
    small: AnyNetwork,
    large: AnyNetwork,
    calibration_loader: Iterable[Any],
    *,
    target_flops: float,
    between: Sequence[AnyNetwork] = (),
    policy: Policy = "learned",
    answer: Answer = "average",
    seed: int = 0,
) -> Cascaded:
    """Confident images stop at the small network, unsure ones go on to the large one; the budget is an average.

    Nothing is trained but the gates, which read how sure the answer so far is: seconds after the networks have seen
    the images once. Networks that differ (in depth, parent or method) gain most together.

    Args:
        small: the cheapest network, or what `prune` returned. It runs on every image. All networks take the same
            images and give logits of the same classes.
        large: the dearest network.
        calibration_loader: batches of images and class ids, gone through once. **No member may have been trained on
            these images**: it would be surer of them than of others, and the budget would be missed on these.
        target_flops: what an image may cost on average: a share of the FLOPs of ``large`` (uncut, where it is a result
            of `prune`) if <= 1, else FLOPs (2 x MACs).
        between: further members, cheapest first.
        policy: ``"learned"``: gates that were trained by the exact policy gradient; ``"margin"``: one threshold on the
            difference between the two highest probabilities.
        answer: ``"average"``: the mean of the logits of all members that ran, each calibrated by a temperature;
            ``"last"``: those of the last that ran.
        seed: of how the images are halved to estimate the accuracy.

    Raises:
        UserError: if the networks and the batches do not fit together, members do not rise in cost, or the budget lies
            outside of what the cascade can spend.
    """
    # Here and not above: the package of routing needs gymnasium, which few of those who import this one do.
    from hybridprune.routing.fit_cascade import MemberLogits, cross_fitted, fit, macs_of_stops
    from hybridprune.routing.price import met

    policy = checked_value(CascadeOptions, "policy", policy, "policy")
    answer = checked_value(CascadeOptions, "answer", answer, "answer")
    seed = checked_value(RunOptions, "seed", seed, "seed")
    target_flops = checked_value(CutOptions, "target_flops", target_flops, "target_flops")
    given = {"small": small, **{f"between[{i}]": each for i, each in enumerate(between)}, "large": large}
    modules = {name: _module(name, each) for name, each in given.items()}
    logits, labels, example = _logits(modules, calibration_loader)
    net = Cascade(list(modules.values()), logits.shape[2], answer).to(device_of(modules["small"])).eval()
    alone = [count_module(module, example)[0] for module in modules.values()]
    macs = macs_of_stops(alone, logits.shape[2])
    for name, cheaper, dearer in zip(list(modules)[1:], alone[:-1], alone[1:], strict=True):
        if dearer <= cheaper:
            raise UserError(
                f"{name}: takes {dearer:,} MACs and the member before it {cheaper:,}; give the cheapest first"
            )
    dense = large.spec.dense_macs if isinstance(large, Pruned) else int(alone[-1])
    budget = _budget(target_flops, dense, macs)
    said, learned = MemberLogits(logits, labels, macs), policy == "learned"
    _, right = cross_fitted(net, said, budget, learned, seed)
    stops = fit(net, said, budget, learned)
    spent = float(macs[stops].mean())
    if not met(spent, budget):
        warn_caller(
            f"the cascade spends {spent / budget:.1%} of the budget, since too few images tell a threshold; give more"
        )
    members = tuple(
        Member(name, each, float(own.double().mean()), float((stops >= k).double().mean()))
        for k, (name, each, own) in enumerate(zip(modules, alone, said.correct, strict=True))
    )
    ahead = paired_bootstrap(right.numpy(), said.correct[said.best_alone(alone, budget)].numpy())
    return Cascaded(net, members, spent, budget, dense, float(right.double().mean()), ahead)


def _module(name: str, given: object) -> nn.Module:
    """A copy of a member, in eval mode, that knows what it was made of: `save` writes no other module."""
    network = network_of(given)
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}: is a {type(network).__name__}; give a torch.nn.Module, or what prune returned")
    if isinstance(network, RoutedNetwork):
        raise UserError(f"{name}: decides for each image itself; give a network without gates, its backbone say")
    found = plain_copy(unwrapped(network)).eval()
    note_origin(found, origin_of(found))
    return found


@torch.no_grad()
def _logits(members: Mapping[str, nn.Module], loader: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The members' logits ``[K, M, classes]`` for a loader's images, class ids ``[M]``, and the first image."""
    if not isinstance(loader, Iterable):
        raise UserError(f"calibration_loader: is a {type(loader).__name__}; give a DataLoader, or a list of batches")
    found: list[Tensor] = []
    labels: list[Tensor] = []
    example: Tensor | None = None
    for number, batch in enumerate(loader, start=1):
        images, targets = _pair(number, batch)
        example = images[:1] if example is None else example
        each = [_answers(number, name, member, images) for name, member in members.items()]
        if len({logits.shape for logits in each}) > 1:
            shapes = ", ".join(f"{name} {list(logits.shape)}" for name, logits in zip(members, each, strict=True))
            raise UserError(f"batch {number}: the members answer with {shapes}; give networks of the same classes")
        found.append(torch.stack(each))
        labels.append(targets)
    if example is None or sum(map(len, labels)) < 2:
        raise UserError(
            "calibration_loader: gives too few images; give one that is not empty, however often it is used"
        )
    logits, classes = torch.cat(found, 1), torch.cat(labels)
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[2]:
        raise UserError(f"calibration_loader: class ids are not all from 0 to {logits.shape[2] - 1}")
    if not bool(logits.isfinite().all()):
        raise UserError("the members' answers to the calibration images are not all finite; give networks that work")
    return logits, classes, example


def _pair(number: int, batch: Any) -> tuple[Tensor, Tensor]:
    pair = (
        cast(Any, batch) if isinstance(batch, list | tuple) and len(cast(Sequence[Any], batch)) == 2 else (None, None)
    )
    images, targets = pair
    if not (isinstance(images, Tensor) and isinstance(targets, Tensor) and targets.shape == images.shape[:1]):
        raise UserError(f"batch {number}: is not a pair of images [B, C, H, W] and class ids [B], both tensors")
    return in_single(images), targets.cpu().long()


def _answers(number: int, name: str, member: nn.Module, images: Tensor) -> Tensor:
    try:
        logits = member(on_device(images, device_of(member)))
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of foreign code
        said = (str(error).splitlines() or [""])[0]
        raise UserError(f"batch {number}: {name} fails on it ({said}); all members take the same images") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise UserError(f"batch {number}: {name} gives no logits [B, classes] for it; give a classifier")
    return logits.float().cpu()


def _budget(target_flops: float, dense: int, macs: Tensor) -> float:
    """The budget in MACs; UserError where the cascade can't spend it."""
    budget, floor, ceiling = target_macs(target_flops, dense), float(macs[0]), float(macs[-1])
    if not floor <= budget <= ceiling:
        raise UserError(
            f"target_flops {target_flops}: {taken_as({'target_flops': target_flops})}the cascade spends between "
            f"{floor / dense:.4f} and {ceiling / dense:.4f} of the FLOPs of large ({2 * floor:,.0f} to "
            f"{2 * ceiling:,.0f}); choose a budget in between, or other members"
        )
    return budget
