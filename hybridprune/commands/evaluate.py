"""Accuracy, execution rates and expected FLOPs of a finished run: ``hybridprune evaluate RUN``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from hybridprune.commands.finished_run import FinishedRun, Parser, add_batch_size
from hybridprune.data import EvalBatches
from hybridprune.engine.evaluate import Evaluation, Routing, evaluate
from hybridprune.engine.threshold import threshold_for
from hybridprune.errors import UserError
from hybridprune.models.routed import RoutedNetwork
from hybridprune.pruning.budget.space import taken_as, target_macs
from hybridprune.routing.price import TOLERANCE, met


def main(argv: Sequence[str], prog: str = "python -m hybridprune.evaluate") -> None:
    """The command."""
    arguments = _parser(prog).parse_args(argv)
    if arguments.mode == "always_on" and arguments.target_flops is not None:
        raise UserError("--target_flops: mode always_on executes every block; use --mode executed or masked")
    run = FinishedRun.load(arguments)
    threshold = 0.0 if arguments.target_flops is None else _threshold(run, arguments.target_flops)
    batches, cost = run.batches(arguments.split), run.cost

    started = time.perf_counter()
    compares = arguments.mode == "executed" and arguments.compare
    result = evaluate(run.net, batches, arguments.mode, threshold=threshold, keep_logits=compares)
    seconds = time.perf_counter() - started
    macs = cost.expected_macs(result.block_rates)
    print(
        f"{run.run.path}: {len(result.labels)} {arguments.split} images, {arguments.mode}, batch {arguments.batch_size}"
    )
    if arguments.target_flops is not None:
        print(f"  blocks run where a gate's logit is above {threshold:.4f}, chosen on the validation images")
    print(f"  accuracy {result.accuracy:.4f}, cross-entropy {result.loss:.4f}")
    if arguments.mode == "always_on":
        print(f"  {_flops(cost.backbone_macs, run)} (2 x MACs), without the gates")
    else:
        print(f"  expected {_flops(macs, run)} (2 x MACs), gates counted")
        if result.block_rates:
            print(f"  execution rates {' '.join(f'{rate:.3f}' for rate in result.block_rates)}")
    print(f"  {len(result.labels) / seconds:.0f} images/s on {run.device}")
    if compares:
        _compare(run.net, batches, result, threshold)


def _flops(macs: float, run: FinishedRun) -> str:
    """In GFLOPs and as a share of the dense network's, which may lie off a budget: that is met on validation."""
    return f"{2 * macs / 1e9:.4g} GFLOPs, {macs / run.dense_macs:.1%} of dense"


def _threshold(run: FinishedRun, target_flops: float) -> float:
    """The threshold that meets the budget on the validation images; UserError if none does."""
    run.need_gates()
    if target_flops <= 0:
        raise UserError(f"--target_flops {target_flops}: must be above 0")
    budget = target_macs(target_flops, run.dense_macs)
    point = threshold_for(run.net, run.batches("validation"), run.cost, budget, TOLERANCE / 2)
    if not met(point.macs, budget):
        raise UserError(
            f"--target_flops {target_flops}: {taken_as({'--target_flops': target_flops})}the nearest operating point "
            f"takes {point.macs / run.dense_macs:.4f} of the dense FLOPs ({2 * point.macs:,.0f}); hybridprune curve "
            f"{run.run.path} shows what there is"
        )
    return point.threshold


def _compare(net: RoutedNetwork, batches: EvalBatches, executed: Evaluation, threshold: float) -> None:
    """Executed against masked: logits for the same decisions, and decisions that flip when left free."""
    forced = evaluate(net, batches, "masked", executed.decisions, keep_logits=True)
    free = evaluate(net, batches, "masked", threshold=threshold)
    scale = forced.logits.abs().amax(1)
    difference = ((executed.logits - forced.logits).abs().amax(1) / scale).max()
    flips = int((executed.decisions != free.decisions).sum())
    print(f"  executed against masked: logits differ by {difference:.1e} (relative, largest image, same decisions)")
    print(f"  threshold flips when masked decides for itself: {flips} of {free.decisions.numel()} decisions")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog)
    add_batch_size(parser)
    modes: tuple[Routing, ...] = ("executed", "masked", "always_on")
    parser.add_argument("--mode", choices=modes, default="executed", help="default: %(default)s")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="default: %(default)s")
    parser.add_argument(
        "--target_flops",
        type=float,
        help="budget: a share of the dense FLOPs if <= 1, else FLOPs (2 x MACs); picks the threshold of the gates on "
        "the validation images (default: the policy as it was trained)",
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in executed mode, also run masked and show how logits and decisions differ (default: yes)",
    )
    return parser
