"""The best split of a FLOPs budget between static and dynamic pruning: CIFAR-100, ResNet-32 of width 16 or others.

    python -m benchmarks.hybrid_arms --data_dir DATA/cifar_100 --work WORK    # run what is missing (resumable)
    python -m benchmarks.hybrid_arms --table                                  # Markdown and plot of what is there

F1 and F2 < F1 are shares of the dense FLOPs. Every arm starts from the same stage-1 network, is cut by fisher-tucker in
one shot and trained for the same epochs in two phases (the second from the first's result, same images and schedule):

- static at F1: cut to F1, both phases with every block executed. static at F2: the same, cut to F2.
- dynamic arms: the first phase of static at F1; in the second one the gates learn as well, and a threshold on
  validation meets F2, gates counted. Each is also read with all blocks executed, and with each image's decision vector
  replayed on another image.
- random gates: in the second phase and in the test, blocks are drawn at the per-block rates of the best dynamic arm
  (on validation), or of the one named as in "random gates as gumbel".
- fixed subset: before the second phase, blocks are dropped one by one (least loss on training images per FLOP saved)
  until F2 is met; no gates are counted.

Hyper-parameters were chosen on validation; the test images are read once per arm.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch

from benchmarks.hybrid_bench import (
    CONTROLS,
    DYNAMIC_ARMS,
    RANDOM_LIKE,
    SIZE,
    STATIC_NAMES,
    Bench,
)
from benchmarks.hybrid_tables import draw_images, show
from benchmarks.results_log import Line, append_line, find_line, read_lines
from benchmarks.static_arms import CHECKPOINT
from benchmarks.static_arms import Bench as StaticBench
from hybridprune.measure.cost import count
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.provenance import hardware, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "hybrid_arms.jsonl"


def run_arm(bench: Bench, name: str, lines: list[Line]) -> Line:
    """One arm, given the lines of the others at the same key."""
    if name in STATIC_NAMES:
        return bench.run_static(name)
    if name in DYNAMIC_ARMS:
        return bench.run_dynamic(name)
    if name == "fixed subset":
        return bench.run_fixed()
    dynamic = [line for line in lines if line["arm"] in DYNAMIC_ARMS]
    if name.startswith(RANDOM_LIKE):
        dynamic = [line for line in dynamic if line["arm"] == name.removeprefix(RANDOM_LIKE)]
    best = max(dynamic, key=lambda line: line["validation"])
    return {**bench.run_random(name, torch.tensor(best["rates"])), "rates_of": best["arm"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--work", type=Path, default=Path("hybrid_work"), help="folder of the trainings")
    parser.add_argument("--f1", type=float, default=0.5, help="static share of the dense FLOPs")
    parser.add_argument("--f2", type=float, default=0.38, help="expected share of the dense FLOPs after routing")
    parser.add_argument("--depth", type=int, default=32, help="of the ResNet")
    parser.add_argument("--weights", type=Path, default=CHECKPOINT, help="stage 1's weights for this depth")
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 1], help="of the two phases")
    parser.add_argument("--arms", nargs="+", default=None, help="names of arms (default: all)")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of the trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", metavar="ARM", help="draw the test images that skip most and least in this arm")
    parser.add_argument("--table", action="store_true", help="print the tables and draw the plot, run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        show(RESULTS, HERE.parent / "docs" / "hybrid_arms.png")
        return
    dense = NetworkSpec("resnet", arguments.depth, 16, 100)
    dense_macs = count(dense.build(), SIZE).backbone_macs
    static = StaticBench.of(arguments.data_dir, arguments.seed, arguments.precision, dense, arguments.weights)
    work = arguments.work / f"resnet{arguments.depth}"
    bench = Bench(static, work, arguments.f1, arguments.f2, tuple(arguments.epochs), dense_macs)
    shared = {
        "depth": arguments.depth,
        "f1": arguments.f1,
        "f2": arguments.f2,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
    }
    if arguments.images is not None:
        line = find_line(read_lines(RESULTS), arm=arguments.images, **shared)
        assert line is not None, f"{arguments.images} was not run with these settings"
        draw_images(line, static.images.dataset, HERE.parent / "docs" / "routed_images.png")
        return
    for name in arguments.arms or itertools.chain(STATIC_NAMES, DYNAMIC_ARMS, CONTROLS):
        if find_line(read_lines(RESULTS), arm=name, **shared) is not None:
            continue
        known = [line for line in read_lines(RESULTS) if all(line[key] == value for key, value in shared.items())]
        found = run_arm(bench, name, known)
        line = {"arm": name, **shared, **found, "precision": arguments.precision}
        append_line(RESULTS, {**line, "versions": versions(), "hardware": hardware(static.images.device)})
        shown = ("share", "accuracy", "validation", "replayed", "always_on", "distinct_routes", "rates")
        print(name, {key: found[key] for key in shown if key in found}, flush=True)


if __name__ == "__main__":
    main()
