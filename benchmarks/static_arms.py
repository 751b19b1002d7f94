"""Static pruning methods side by side: CIFAR-100, gated ResNet-32 of width 16, every block executed.

    python -m benchmarks.static_arms --data_dir DATA/cifar_100           # run what is missing (resumable)
    python -m benchmarks.static_arms --study --data_dir DATA/cifar_100   # parts of the default method, validation set
    python -m benchmarks.static_arms --table                             # Markdown and plot of what is there

Every arm starts from the same checkpoint and is cut in one shot to the same budget; accuracy is measured right after
the cut, with BatchNorm recalibrated, and after the same short fine-tuning. All hyper-parameters were chosen on the
validation split, which the study reports; the arms are measured on the full test set.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_log import Line, append_line, find_line, pack, read_lines
from benchmarks.static_tables import show
from hybridprune.config import CurvatureOptions, CutOptions, PruneConfig
from hybridprune.data import Batch, EvalBatches, TrainBatches
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.finetune import finetune
from hybridprune.engine.run_data import load_images
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import DTYPES
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.pipeline import CutState
from hybridprune.stages.cut_schedule import Cutting
from hybridprune.stages.images import RunImages
from hybridprune.store.provenance import hardware, versions
from hybridprune.store.weights import load_weights

HERE = Path(__file__).parent
DENSE = NetworkSpec("resnet", 32, 16, 100)
CHECKPOINT = HERE / "checkpoints" / "cifar100_resnet32_w16_sp.safetensors"
RESULTS, STUDY = HERE / "results" / "static_arms.jsonl", HERE / "results" / "static_study.jsonl"
LR, BATCH = 0.02, 128


@dataclass(frozen=True)
class Arm:
    """A method with its options: what differs from the defaults."""

    cut: Mapping[str, Any]
    curvature: Mapping[str, Any] = field(default_factory=dict)


COMMON = {"refit": "cores", "separable": "none"}
"""Of all arms: the defaults when they were measured."""
PLAIN = {"refit_images": 0}
ARMS: Mapping[str, Arm] = {
    "fisher-tucker": Arm({}),
    "fisher-tucker, no refit": Arm(PLAIN),
    "eigendamage": Arm({"method": "eigendamage", **PLAIN}, {"sua": True}),
    "eigendamage, corrected": Arm({"method": "eigendamage", **PLAIN}, {"sua": True, "correct_eigenvalues": True}),
    "bn-scale": Arm({"method": "bn-scale"}),
    "l1": Arm({"method": "l1"}),
    "taylor": Arm({"method": "taylor"}),
    "random": Arm({"method": "random"}),
    "uniform": Arm({"method": "uniform"}),
    "kron-obd": Arm({"method": "kron-obd"}, {"sua": True}),
    "kron-obs": Arm({"method": "kron-obs"}, {"sua": True}),
    "c-obd": Arm({"method": "c-obd"}, {"sua": True}),
    "c-obs": Arm({"method": "c-obs"}, {"sua": True}),
}

EIGEN = {"method": "eigendamage", **PLAIN}
STUDIES: Mapping[str, Arm] = {
    "importance, channel factors": Arm({**PLAIN, "allocation": "importance"}, {"sua": True}),
    "+ per FLOP": Arm({**PLAIN, "allocation": "importance_per_flop"}, {"sua": True}),
    "+ rate-distortion": Arm(PLAIN, {"sua": True}),
    "+ offset factor K": Arm(PLAIN),
    "K, per FLOP": Arm({**PLAIN, "allocation": "importance_per_flop"}),
    "K, per FLOP, refit on 1024 images": Arm({"allocation": "importance_per_flop"}),
    "+ K from the full covariance": Arm(PLAIN, {"use_full_cov_a": True}),
    "+ K, centred inputs": Arm(PLAIN, {"use_bias": True}),
    "+ K, 5 HOOI sweeps": Arm({**PLAIN, "decomp_method": "tucker"}),
    "+ K, refit on 256 images": Arm({"refit_images": 256}),
    "+ K, refit on 1024 images": Arm({}),
    "+ K, refit, 5 HOOI sweeps": Arm({"decomp_method": "tucker"}),
    "K, damping 1e-4": Arm(PLAIN, {"regularization": 1e-4}),
    "K, damping 1e-8": Arm(PLAIN, {"regularization": 1e-8}),
    "K, labels given": Arm(PLAIN, {"fisher_type": "exp"}),
    "K, 256 curvature images": Arm(PLAIN, {"curvature_images": 256}),
    "K, 1024 curvature images": Arm(PLAIN, {"curvature_images": 1024}),
    "K, 64 moment images": Arm(PLAIN, {"moment_images": 64}),
    "K, 128 moment images": Arm(PLAIN, {"moment_images": 128}),
    "K, 2048 moment images": Arm(PLAIN, {"moment_images": 2048}),
    "eigendamage, corrected": Arm(EIGEN, {"sua": True, "correct_eigenvalues": True}),
    "eigendamage, corrected, 128 moment images": Arm(
        EIGEN, {"sua": True, "correct_eigenvalues": True, "moment_images": 128}
    ),
    "eigendamage, corrected, rate-distortion": Arm(
        {**EIGEN, "allocation": "rate_distortion"}, {"sua": True, "correct_eigenvalues": True}
    ),
    "eigendamage, corrected, K, rate-distortion": Arm(
        {**EIGEN, "allocation": "rate_distortion"}, {"correct_eigenvalues": True}
    ),
    "eigendamage, corrected, tucker, rate-distortion": Arm(
        {**EIGEN, "allocation": "rate_distortion", "decomp_method": "tucker"},
        {"sua": True, "correct_eigenvalues": True},
    ),
}


@dataclass(frozen=True)
class Bench:
    """The images and the network that all arms start from."""

    images: RunImages
    seed: int
    precision: str
    network: NetworkSpec = DENSE
    weights: Path = CHECKPOINT

    @staticmethod
    def of(data_dir: str, seed: int, precision: str, network: NetworkSpec = DENSE, weights: Path = CHECKPOINT) -> Bench:
        """The full CIFAR-100 tree under ``data_dir``."""
        config = _config(Arm({}), 1.0, data_dir, seed)
        dataset = load_images(config.data)
        return Bench(RunImages.of(dataset, None, config, torch.device("cpu")), seed, precision, network, weights)

    def dense(self) -> GatedNetwork:
        """The network that is cut."""
        net = self.network.build()
        load_weights(net, self.weights)
        return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def cut(self, arm: Arm, budget: float, net: GatedNetwork | None = None) -> tuple[GatedNetwork, dict[str, Any]]:
        """The dense network, or ``net``, right after the cut (in place), and what it cost to make."""
        uncut = count(self.network.build(), 32)
        net = net or self.dense()
        before = count(net, 32)
        config = _config(arm, budget, None, self.seed)
        dense = {"macs": uncut.backbone_macs, "params": uncut.backbone_params}
        start = Cost(before.backbone_macs, before.backbone_params)
        pipeline = Cutting(config, self.images, dense, start, {}).pipeline(net)
        times = [time.perf_counter()]
        plan = pipeline.make_plan(net, 0)
        times.append(time.perf_counter())
        kept, _ = pipeline.decide(plan, 0, CutState())
        times.append(time.perf_counter())
        plan.apply(kept)
        times.append(time.perf_counter())
        recalibrate(net, self.images.sample(10_000, BATCH, "recalibration"), always_on=True)
        after = count(net, 32)
        parts = zip(("score", "allocate", "apply"), pairwise(times), strict=True)
        seconds = {name: round(end - start, 2) for name, (start, end) in parts}
        share = after.backbone_macs / uncut.backbone_macs
        params = after.backbone_params
        return net, {"share": share, "macs": after.backbone_macs, "params": params, "seconds": seconds}

    def tune(self, net: GatedNetwork, epochs: float) -> None:
        """A short training, the same for every arm, every block executed."""
        loader = _Loader(self.images.training("static arms"))
        precision = DTYPES[self.precision]
        finetune(net.backbone, loader, epochs=epochs, lr=LR, device=self.images.device, precision=precision)

    def correct(self, net: GatedNetwork, batches: EvalBatches) -> np.ndarray:
        """The images that the network gets right, every block executed, ``[M]`` bool."""
        found = evaluate(net, batches, "always_on")
        return (found.predictions == found.labels).numpy()


@dataclass(frozen=True)
class _Loader:
    batches: TrainBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.epoch(0)


def _config(arm: Arm, budget: float, data_dir: str | None, seed: int) -> PruneConfig:
    default = PruneConfig()
    return dataclasses.replace(
        default,
        run=dataclasses.replace(default.run, seed=seed),
        data=dataclasses.replace(default.data, data_dir=data_dir, batch_size=BATCH),
        cut=CutOptions(**{"prune_ratio": 0.5, "target_flops": budget, **COMMON, **arm.cut}),
        curvature=CurvatureOptions(**arm.curvature),
    )


def run_arm(bench: Bench, name: str, budget: float, epochs: float) -> Line:
    """One arm at one budget, on the test set."""
    net, cost = bench.cut(ARMS[name], budget) if name != "dense" else (bench.dense(), {"share": 1.0})
    after_cut = bench.correct(net, bench.images.test())
    line = {
        **cost,
        "images": len(after_cut),
        "after_cut": float(after_cut.mean()),
        "after_cut_correct": pack(after_cut),
    }
    if epochs and name != "dense":
        started = time.perf_counter()
        bench.tune(net, epochs)
        tuned = bench.correct(net, bench.images.test())
        line |= {
            "tuned": float(tuned.mean()),
            "tuned_correct": pack(tuned),
            "tuned_seconds": round(time.perf_counter() - started, 1),
        }
    return line


def run_study(bench: Bench, name: str, budget: float) -> Line:
    """One variant at one budget right after the cut, on the validation split."""
    net, cost = bench.cut(STUDIES[name], budget)
    correct = bench.correct(net, bench.images.validation())
    return {**cost, "images": len(correct), "after_cut": float(correct.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25], help="shares of the dense FLOPs")
    parser.add_argument("--arms", nargs="+", default=None, help="names of arms (default: all)")
    parser.add_argument("--epochs", type=float, default=0.5, help="fine-tuning epochs; 0: right after the cut only")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of the fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", action="store_true", help="parts of the default method on the validation split")
    parser.add_argument("--table", action="store_true", help="print the tables and draw the plot, run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        show(RESULTS, STUDY, HERE.parent / "docs" / "static_arms.png")
        return
    path, known = (STUDY, STUDIES) if arguments.study else (RESULTS, {"dense": Arm({}), **ARMS})
    bench = Bench.of(arguments.data_dir, arguments.seed, arguments.precision)
    for budget in arguments.budgets:
        for name in arguments.arms or known:
            key = {"arm": name, "budget": 1.0 if name == "dense" else budget, "seed": arguments.seed}
            if not arguments.study:
                key |= {"epochs": 0.0 if name == "dense" else arguments.epochs, "precision": arguments.precision}
            if find_line(read_lines(path), **key) is not None:
                continue
            found = (
                run_study(bench, name, budget) if arguments.study else run_arm(bench, name, budget, arguments.epochs)
            )
            append_line(path, {**key, **found, "versions": versions(), "hardware": hardware(bench.images.device)})
            shown = {k: round(v, 4) for k, v in found.items() if k in ("share", "after_cut", "tuned")}
            print(name, budget, shown, found.get("seconds", ""), flush=True)


if __name__ == "__main__":
    main()
