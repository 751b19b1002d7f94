"""``python -m hybridprune.evaluate RUN``: accuracy, execution rates and expected FLOPs of a finished run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hybridprune.config import DataOptions
from hybridprune.data import Dataset, EvalBatches
from hybridprune.engine.evaluate import Evaluation, Routing, evaluate
from hybridprune.errors import UserError, run_command
from hybridprune.inference import Model, load
from hybridprune.measure.cost import count
from hybridprune.stages.common import device_of, load_images, read_split
from hybridprune.store.run_folder import RunFolder


def main(argv: Sequence[str]) -> None:
    """The command."""
    arguments = _parser().parse_args(argv)
    if arguments.batch_size < 1:
        raise UserError(f"--batch_size {arguments.batch_size}: must be at least 1")
    run = RunFolder.named(arguments.run)
    device = device_of(arguments.device)
    model = load(run.path, device)
    batches = _batches(arguments, run, model, device)
    cost = count(model.network, model.spec.input_size)

    started = time.perf_counter()
    result = evaluate(model.network, batches, arguments.mode)
    seconds = time.perf_counter() - started
    share = cost.expected_macs(result.block_rates)
    print(f"{run.path}: {len(result.labels)} {arguments.split} images, {arguments.mode}, batch {arguments.batch_size}")
    print(f"  accuracy {result.accuracy:.4f}, cross-entropy {result.loss:.4f}")
    if arguments.mode == "always_on":
        print(f"  {2 * cost.backbone_macs / 1e9:.4f} GFLOPs (2 x MACs), without the gates")
    else:
        print(f"  expected {2 * share / 1e9:.4f} GFLOPs (2 x MACs), gates counted")
        if result.block_rates:
            print(f"  execution rates {' '.join(f'{rate:.3f}' for rate in result.block_rates)}")
    print(f"  {len(result.labels) / seconds:.0f} images/s on {device}")
    if arguments.mode == "executed" and arguments.compare:
        _compare(model, batches, result)


def _compare(model: Model, batches: EvalBatches, executed: Evaluation) -> None:
    """Executed against masked: logits for the same decisions, and decisions that flip when left free."""
    forced = evaluate(model.network, batches, "masked", executed.decisions)
    free = evaluate(model.network, batches, "masked")
    scale = forced.logits.abs().amax(1)
    difference = ((executed.logits - forced.logits).abs().amax(1) / scale).max()
    flips = int((executed.decisions != free.decisions).sum())
    print(f"  executed against masked: logits differ by {difference:.1e} (relative, largest image, same decisions)")
    print(f"  threshold flips when masked decides for itself: {flips} of {free.decisions.numel()} decisions")


def _batches(arguments: argparse.Namespace, run: RunFolder, model: Model, device: torch.device) -> EvalBatches:
    dataset = load_images(_data_options(arguments, run, model))
    if dataset.digest != model.spec.dataset_digest:
        raise UserError(f"--data_dir: holds other images than {run.path} was trained on; name that run's data")
    images, ids = _split(dataset, arguments.split, run)
    return EvalBatches(
        images,
        ids,
        batch_size=arguments.batch_size,
        mean=model.spec.mean,
        std=model.spec.std,
        device=device,
        channels_last=True,
    )


def _split(dataset: Dataset, split: str, run: RunFolder) -> tuple[Any, torch.Tensor | None]:
    if split == "test":
        return dataset.test, None
    return dataset.train, read_split(run).validation


def _data_options(arguments: argparse.Namespace, run: RunFolder, model: Model) -> DataOptions:
    """The run's own data options; ``--data_dir`` says where the images lie now."""
    stored = run.read_json("config.json")
    known = {f.name for f in dataclasses.fields(DataOptions)}
    options = DataOptions(**{key: value for key, value in stored.items() if key in known})
    return dataclasses.replace(options, data_dir=arguments.data_dir or options.data_dir, resize=model.spec.input_size)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m hybridprune.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run of any stage")
    modes: tuple[Routing, ...] = ("executed", "masked", "always_on")
    parser.add_argument("--mode", choices=modes, default="executed", help="default: %(default)s")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="default: %(default)s")
    parser.add_argument("--data_dir", help="where the images lie now (default: where they lay in training)")
    parser.add_argument("--batch_size", "--bs", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in executed mode, also run masked and show how logits and decisions differ (default: yes)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
