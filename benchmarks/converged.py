"""Static pruning of networks that others have trained to the end: CIFAR-100, published ResNets of width 16.

    python -m benchmarks.converged --data_dir DATA/cifar_100 --weights WEIGHTS --work WORK  # run what is missing
    python -m benchmarks.converged --tables --plot FILE                                     # of what is there

WEIGHTS holds cifar100_resnet20.pth, ...32, ...44 and ...56 of chenyaofo/pytorch-cifar-models (BSD-3-Clause). Every
network that is cut is also compared with the smaller one that its authors trained from scratch. All arms are cut in one
shot, measured on training images without augmentation, get their BatchNorm statistics from the same number of images,
and are trained by the same recipe. The published networks have seen all training images, so choices are made on a fixed
fifth of the test images and figures are of the others. A training that is killed goes on after its last epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hybridprune
from benchmarks.converged_plot import plot
from benchmarks.converged_tables import DENSE, OURS, show
from benchmarks.peers import IMPORTANCES, torch_pruned
from benchmarks.recipe import CPU, BenchImages, Recipe, Teacher, save, train
from benchmarks.results_log import Line, append_line, find_line, pack, read_lines
from hybridprune.config import CutOptions, DataOptions
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.engine.run_data import load_images
from hybridprune.measure.cost import count_module
from hybridprune.models.edits import apply_edits, edit_from_json, edits_between
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.weights import start_from
from hybridprune.store.files import sha256
from hybridprune.store.provenance import hardware, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "converged.jsonl"
MEAN, STD = (0.507, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
"""Which the published networks were trained with."""
WIDTH = 16
PEERS = {f"torch-pruning {importance}": importance for importance in IMPORTANCES}
SCRATCH = "uniform, from scratch"
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    OURS: {"refit": "network", "separable": "narrow"},
    "fisher-tucker, refit network": {"refit": "network", "separable": "none"},
    "fisher-tucker": {"refit": "cores", "separable": "none"},
    SCRATCH: {"cut_weights": "scratch"},
}
"""The options of a cut, by name of the arm: its method, and behind a comma what is special about it."""
METHODS = (
    OURS,
    "fisher-tucker, refit network",
    "fisher-tucker",
    "eigendamage",
    "taylor",
    *PEERS,
    "group-l2",
    "bn-scale",
    "uniform",
    SCRATCH,
)
CELLS = ("32:0.5", "56:0.32", "56:0.55", "32:0.59")
"""Depth and target: ResNet-20 has 0.32 of the FLOPs of ResNet-56 and 0.59 of those of ResNet-32, which has 0.55."""
BATCH, TAYLOR_IMAGES, RECALIBRATION_IMAGES = 128, 4096, 4096


@dataclass(frozen=True)
class Cell:
    """A published network and the share of its FLOPs, or of its parameters, that is to stay."""

    depth: int
    target: float
    budget: str = "flops"

    @staticmethod
    def of(text: str) -> Cell:
        """``DEPTH:TARGET`` or ``DEPTH:TARGET:params``"""
        depth, target, *budget = text.split(":")
        found = Cell(int(depth), float(target), *budget)
        if found.budget not in ("flops", "params"):
            raise ValueError(text)
        return found

    def __str__(self) -> str:
        return f"{self.depth}:{self.target}" + (":params" if self.budget == "params" else "")

    def key(self, method: str, seed: int) -> dict[str, Any]:
        """The fields of a line that name the cut network."""
        budget = None if self.budget == "flops" else self.budget
        network = f"resnet{self.depth}"
        return {"network": network, "target": self.target, "budget": budget, "method": method, "seed": seed}


@dataclass(frozen=True)
class Bench:
    """The images, and where networks come from and go."""

    images: BenchImages
    weights: Path
    work: Path

    def file(self, depth: int) -> Path:
        """The published weights."""
        return self.weights / f"cifar100_resnet{depth}.pth"

    def dense(self, depth: int) -> nn.Module:
        """The published network, without gates."""
        spec = NetworkSpec("resnet", depth, WIDTH, len(self.images.dataset.classes))
        net = spec.build()
        start_from(net, spec, self.file(depth))
        return net.backbone.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def cut(self, cell: Cell, method: str, seed: int) -> nn.Module:
        """The network right after the cut, from the work folder if it is there."""
        net = self.dense(cell.depth)
        path = self.folder(cell, method, seed) / "cut.pt"
        if path.is_file():
            state = torch.load(path, weights_only=True)
            apply_edits(net, [edit_from_json(edit) for edit in state["edits"]])
            net.load_state_dict(state["net"])
            return net
        pruned = self._cut(net, cell, method, seed)
        edits = [edit.to_json() for edit in edits_between(net, pruned)]
        save(path, {"edits": edits, "net": pruned.state_dict()})
        return pruned

    def folder(self, cell: Cell, method: str, seed: int) -> Path:
        """The folder of one cut network."""
        return (
            self.work / f"resnet{str(cell).replace(':', '-')}-{method.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        )

    def _cut(self, net: nn.Module, cell: Cell, method: str, seed: int) -> nn.Module:
        pairs = self.images.shuffled(seed, BATCH)
        if method in PEERS:
            assert cell.budget == "flops", "torch-pruning searches its ratio by MACs here"
            example = next(iter(pairs))[0][:1]
            some = islice(pairs, TAYLOR_IMAGES // BATCH)
            pruned = torch_pruned(net, PEERS[method], cell.target, example, some)
            statistics = islice(pairs, RECALIBRATION_IMAGES // BATCH)
            recalibrate_by(pruned, statistics, lambda pair: pruned(pair[0]))
            return pruned.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        options, name = CutOptions(**OPTIONS.get(method, {})), method.partition(",")[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that are left alone
            budget: dict[str, Any] = {f"target_{cell.budget}": cell.target}
            pruned = hybridprune.prune(net, pairs, method=name, **budget, cut=options, seed=seed)
        return pruned.module.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def outcome(self, net: nn.Module, depth: int) -> Line:
        """The cost of a network, and the test images that it gets right."""
        dense, example = self.dense(depth), next(iter(self.images.shuffled(0, BATCH)))[0][:1]
        (macs, params), whole = count_module(net, example), count_module(dense, example)
        correct, parts = self.images.correct(net).numpy(), self.images.parts
        calibration, report = correct[parts.validation.numpy()], correct[parts.train.numpy()]
        return {
            "calibration": float(calibration.mean()),
            "report": float(report.mean()),
            "images": [len(calibration), len(report)],
            "calibration_correct": pack(calibration),
            "report_correct": pack(report),
            "macs": macs,
            "params": params,
            "share": macs / whole[0],
            "params_share": params / whole[1],
        }

    def run(self, cell: Cell, method: str, seed: int, recipe: Recipe, epochs: int) -> Line:
        """One arm: cut, and trained for so many epochs."""
        started = time.process_time()
        found: Line = {}
        if method == DENSE:
            net = self.dense(cell.depth)
        elif epochs:
            net, found["losses"] = self.trained(cell, method, seed, recipe, epochs)
        else:
            net = self.cut(cell, method, seed)
        return {**self.outcome(net, cell.depth), **found, "cpu_seconds": round(time.process_time() - started, 1)}

    def trained(self, cell: Cell, method: str, seed: int, recipe: Recipe, epochs: int) -> tuple[nn.Module, list[float]]:
        """The cut network after a training, which goes on where it was left, and its loss in each epoch."""
        net = self.cut(cell, method, seed)
        path = self.folder(cell, method, seed) / f"{recipe.name}-{epochs}.pt"
        teacher = Teacher(self.dense(cell.depth), self.work / f"teacher-resnet{cell.depth}")
        return net, train(net, teacher, self.images, recipe, epochs, seed, path)


def wanted(arguments: argparse.Namespace) -> Iterator[tuple[Cell, str, int]]:
    """Cells, methods and epochs in the order in which they are run: the published networks, then the shorter ones."""
    for depth in arguments.published:
        yield Cell(depth, 1.0), DENSE, 0
    for epochs in arguments.epochs:
        for cell in arguments.cells:
            for method in arguments.methods:
                if cell.budget == "flops" or method not in PEERS:
                    yield cell, method, epochs


def run_missing(
    bench: Bench, path: Path, arguments: argparse.Namespace, recipe: Recipe, say: Callable[[str], object]
) -> None:
    """Append a line for each arm that has none."""
    for cell, method, epochs in wanted(arguments):
        key = {**cell.key(method, arguments.seed), "recipe": recipe.name if epochs else "", "epochs": epochs}
        if find_line(read_lines(path), **key) is not None:
            continue
        found = bench.run(cell, method, arguments.seed, recipe, epochs)
        line = {
            **key,
            **found,
            "recipe_options": dataclasses.asdict(recipe) if epochs else {},
            "weights_sha256": sha256(bench.file(cell.depth)),
            "command": command(cell, method, epochs, arguments.seed, recipe),
            "commit": commit(),
            "versions": versions(),
            "hardware": hardware(CPU),
        }
        append_line(path, line)
        say(f"{cell} {method}, {epochs} epochs: {found['report']:.2%} at {found['share']:.3f}")


def command(cell: Cell, method: str, epochs: int, seed: int, recipe: Recipe) -> str:
    """The command line that gives one line anew, wherever the data lies."""
    if method == DENSE:
        return f"python -m benchmarks.converged --published {cell.depth} --epochs"
    flags = ["--published", "--cells", str(cell), "--methods", method]
    flags += ["--epochs", str(epochs), "--seed", str(seed)]
    for name, value in dataclasses.asdict(recipe).items() if epochs else ():
        flags += ["--recipe" if name == "name" else f"--{name}", str(value)]
    return shlex.join(["python", "-m", "benchmarks.converged", *flags])


def commit() -> str:
    """The hash of the source; empty outside of a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def shared_parser(description: str | None, results: Path) -> argparse.ArgumentParser:
    """The flags of all benchmarks of published networks: where things lie, the seed, and what to show."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    found.add_argument("--weights", type=Path, default=Path("data/weights"), help="folder of the published networks")
    found.add_argument("--work", type=Path, default=Path("results/converged"), help="folder for cut networks")
    found.add_argument("--results", type=Path, default=results, help="file of the lines")
    found.add_argument("--seed", type=int, default=0, help="of cuts and trainings")
    found.add_argument("--tables", action="store_true", help="print the tables, run nothing")
    found.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture, run nothing")
    return found


def parser() -> argparse.ArgumentParser:
    """The command line; every field of the recipe is a flag."""
    found = shared_parser(__doc__, RESULTS)
    found.add_argument("--published", type=int, nargs="*", default=[20, 32, 44, 56], help="depths that are measured")
    found.add_argument(
        "--cells", type=Cell.of, nargs="+", default=[Cell.of(x) for x in CELLS], help="DEPTH:TARGET[:params]"
    )
    found.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    found.add_argument("--epochs", type=int, nargs="*", default=[0, 1], help="of fine-tuning; 0: right after the cut")
    found.add_argument("--recipe", default=Recipe.name, help="a name for the options of the fine-tuning that follow")
    for field in dataclasses.fields(Recipe):
        if field.name != "name":
            found.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return found


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the flags say."""
    options = {x.name: getattr(arguments, x.name) for x in dataclasses.fields(Recipe) if x.name != "name"}
    return Recipe(arguments.recipe, **options)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.tables:
        show(read_lines(arguments.results))
    if arguments.plot is not None:
        plot(read_lines(arguments.results), arguments.plot)
    if arguments.tables or arguments.plot is not None:
        return
    images = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
    bench = Bench(images, arguments.weights, arguments.work)
    run_missing(bench, arguments.results, arguments, recipe_of(arguments), lambda x: print(x, flush=True))


if __name__ == "__main__":
    main()
