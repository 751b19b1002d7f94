"""Every method of stage 2 side by side: CIFAR-100, a ResNet-32 and a VGG-11 that are trained to the end.

    python -m benchmarks.methods --data_dir DATA/cifar_100 --weights WEIGHTS  # run what is missing (resumable)
    python -m benchmarks.methods --table                                      # Markdown, plot and JSON of what is there

WEIGHTS holds cifar100_resnet32.pth of chenyaofo/pytorch-cifar-models (BSD-3-Clause); the VGG-11 is trained here, for
`base` epochs. Each arm is a real run of `main_prune.py` from the same dense network. All train for `more` epochs by one
recipe; a method that trains before its cut shares them out, 6 + 4 of 10 (the dense network itself is trained on for as
long). An arm that starts from newly initialised weights has the epochs of the dense network as well, where these are
known. The published network has seen the validation images; nothing is chosen on them here. Test images are read once
an arm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods_tables import DENSE, show
from benchmarks.results_log import append_line, find_line, pack, read_lines
from hybridprune.config import SpConfig, resolve
from hybridprune.config.methods import METHOD_NAMES
from hybridprune.data import EvalBatches
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.run_data import load_images
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.stages import prune, sp
from hybridprune.stages.images import RunImages
from hybridprune.store.run_folder import RunFolder

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "methods.jsonl"
UP_DOWN = ("--scheduler_id", "up-down", "--scheduler_params", '{"0": 0.2, "0.2": 1, "1": 0}')
TUNED = 0.4
"""Share of the epochs that is left for the fine-tuning by a method that trains before its cut."""


@dataclass(frozen=True)
class Start:
    """The dense network that all arms start from."""

    flags: Sequence[str]
    base: int
    """Epochs of its training here; 0: it was trained by others."""
    published: str | None = None
    """The file of its weights, if it was."""


NETWORKS: Mapping[str, Start] = {
    "resnet32": Start(("--network", "resnet", "--depth", "32", "--width", "16"), 0, "cifar100_resnet32.pth"),
    "vgg11-w32": Start(("--network", "vgg", "--depth", "11", "--width", "32"), 60),
}


@dataclass(frozen=True)
class Arm:
    """A method with flags of its own."""

    method: str
    flags: Sequence[str] = ()
    scratch: bool = False
    """Its last training, not a training towards sparsity, starts from newly initialised weights."""

    def epochs(self, base: int, more: int) -> tuple[int, int]:
        """Epochs of each training towards sparsity, and of the fine-tuning."""
        trainings = sparsity_of(self.method).trainings
        if self.scratch:
            return 0, base + more
        if not trainings:
            return 0, more
        if sparsity_of(self.method).anew:  # new weights twice: half for what is searched in, half for what is found
            return (base + more) // 2, base + more - (base + more) // 2
        before = more - round(TUNED * more)
        if trainings[0].fresh:
            return base + before, more - before
        sparse = max(1, before // len(trainings))
        return sparse, more - sparse * len(trainings)


SCRATCH = "uniform, from scratch"
ARMS: Mapping[str, Arm] = {
    **{name: Arm(name) for name in METHOD_NAMES},
    SCRATCH: Arm("uniform", ("--cut_weights", "scratch"), scratch=True),
}
"""A method by its own name, with its published allocation, and inner channels only where it removes channels."""


def common(network: str, data_dir: str, work: Path, images: int | None, seed: int) -> list[str]:
    """Flags that all runs share."""
    some = [] if images is None else ["--max_train_samples", str(images)]
    return [
        *NETWORKS[network].flags, *UP_DOWN, *some, "--data_dir", data_dir, "--result_dir", str(work),
        "--seed", str(seed), "--bs", "128", "--alpha", "0", "--device", "cpu",
    ]  # fmt: skip


def finished(
    work: Path, exp_name: str, stage: str, run: Callable[[Sequence[str]], object], argv: list[str]
) -> RunFolder:
    """The run of a stage in an experiment: the one that is there, or what ``run`` makes of ``argv`` (resumed)."""
    folder = work / exp_name

    def found() -> list[RunFolder]:
        runs = [RunFolder(path.parent) for path in folder.glob("*/result.json")]
        return [each for each in runs if each.read_json("result.json")["stage"] == stage]

    if not found():
        run([*argv, "--exp_name", exp_name, *(["--resume"] if list(folder.glob("*/train_state.pt")) else [])])
    (one,) = found()
    return one


def outcome(run: RunFolder, test: EvalBatches) -> dict[str, Any]:
    """The cost of a run's network, and the test images that it gets right with every block executed."""
    net, _ = run.load_network()
    found = evaluate(net.to(memory_format=torch.channels_last), test, "always_on")  # type: ignore[call-overload]
    correct = (found.predictions == found.labels).numpy()
    result = run.read_json("result.json")
    return {
        "accuracy": float(correct.mean()),
        "correct": pack(correct),
        "images": len(correct),
        "share": result["macs"]["backbone"] / result["dense"]["macs"],
        "params": result["params"]["backbone"],
        "seconds": result["seconds"],
        "versions": result["versions"],
        "hardware": result["hardware"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--work", default="results/methods", help="folder for the runs")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="names of arms (default: all)")
    parser.add_argument("--weights", default="weights", help="folder of the published networks")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.3], help="shares of the dense FLOPs")
    parser.add_argument("--images", type=int, help="training images, spread over the classes (default: all)")
    parser.add_argument("--more", type=int, default=10, help="epochs of everything that follows the dense network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table, draw the plot, run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        show(read_lines(RESULTS), HERE.parent / "docs")
        return
    for network in arguments.networks:
        run_network(network, arguments)


def run_network(network: str, options: argparse.Namespace) -> None:
    """All arms that are missing, for one network."""
    start, more, seed = NETWORKS[network], options.more, options.seed
    work = Path(options.work) / (network if options.images is None else f"{network}-{options.images}")
    flags = common(network, options.data_dir, work, options.images, seed)
    weights = [] if start.published is None else ["--weights", str(Path(options.weights) / start.published)]
    dense = finished(work, "default", "sp", sp.main, [*flags, *weights, "--epochs", str(start.base), "--lr", "0.1"])
    config = resolve(SpConfig(), flags, prog="", description="").config
    images = RunImages.of(load_images(config.data), None, config, torch.device("cpu"))
    key = {"network": network, "images_trained": options.images, "base": start.base, "more": more, "seed": seed}
    if find_line(read_lines(RESULTS), arm=DENSE, **key) is None:
        argv = [*flags, "--epochs", str(more), "--lr", "0.03", "--weights", str(dense.model_file)]
        line = outcome(finished(work, f"{DENSE}-{more}", "sp", sp.main, argv), images.test())
        append_line(RESULTS, {"arm": DENSE, "target": 1.0, **key, "sparse_epochs": 0, "tune_epochs": more, **line})
    for name, target in product(options.arms, options.targets):
        arm = ARMS[name]
        if find_line(read_lines(RESULTS), arm=name, target=target, **key) is not None:
            continue
        sparse, tune = arm.epochs(start.base, more)
        argv = [
            *flags, *arm.flags, "--config_path", str(HERE.parent / "config.json"), "--checkpoint_file", str(dense.path),
            "--method", arm.method, "--target_flops", str(target), "--sparse_epochs", str(sparse),
            "--epochs_start", str(tune), "--epochs_end", str(tune), "--recipe", "default",
        ]  # fmt: skip
        line = outcome(finished(work, f"{name}-{target}-{more}", "prune", prune.main, argv), images.test())
        epochs = {"sparse_epochs": sparse * len(sparsity_of(arm.method).trainings), "tune_epochs": tune}
        append_line(RESULTS, {"arm": name, "target": target, **key, **epochs, **line})
        print(network, name, f"{line['accuracy']:.2%} at {line['share']:.3f}", flush=True)


if __name__ == "__main__":
    main()
