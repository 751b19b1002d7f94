"""Options of stages 2 and 3, each changed alone: embedded digits, two seeds, the real stages.

    python -m benchmarks.options            # run what is missing (resumable), in minutes
    python -m benchmarks.options --table    # Markdown of what is there

Measured are those options that no other benchmark compares. An arm is its flags behind those that all arms of its stage
share; it stands beside the arm without its own. Both start from the same network of stage 1 with the same seed.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.methods import finished
from benchmarks.results_log import Line, append_line, find_line, pack, read_lines, unpack
from hybridprune.config import SpConfig, resolve
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.run_data import load_images
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.stages import prune, rl_prune, sp
from hybridprune.stages.images import RunImages
from hybridprune.tables import Table

RESULTS = Path(__file__).parent / "results" / "options.jsonl"
SEEDS = (0, 1)
NETWORK = "--dataset digits --resize 16 --network resnet --depth 14 --width 8 --bs 64 --device cpu"
PARENT = f"{NETWORK} --scheduler_id up-down --epochs 6 --gate_noise 1 --alpha 0.02"
STAGES = {"prune": prune.main, "rl": rl_prune.main}
MEANING = {
    "prune": "cut to 20 % of the FLOPs, two epochs of fine-tuning",
    "rl": "gates of the uncut network, 60 % of its FLOPs, six epochs",
}
SHARED = {
    "prune": f"{NETWORK} --scheduler_id up-down --target_flops 0.2 --epochs_start 2 --epochs_end 2 --alpha 0 "
    "--refit cores --separable none --recipe published",
    "rl": f"{NETWORK} --scheduler_id up-down --target_flops 0.6 --epochs 6 --lr 0.02 --batchnorm trained "
    "--gate_start subset",
}


@dataclass(frozen=True)
class Arm:
    """A run of a stage: its flags behind those of ``SHARED``, and what it is held against."""

    stage: str
    flags: str
    base: str = ""
    """Flags of the arm beside it; its own, if it is one of those that others are held against."""


# Inner channels alone leave no choice at a fifth of the FLOPs.
BN_SCALE = "--method bn-scale --target_flops 0.5"
NUSPM = "--method nuspm --sparse_epochs 8 --target_flops 0.5"
# Where the FLOPs leave some layers whole.
WIDE = "--target_flops 0.7"
ARMS = (
    *(Arm("prune", base, base) for base in ("", "--method eigendamage", BN_SCALE, NUSPM, WIDE)),
    Arm("prune", "--fix_rotation"),
    Arm("prune", f"{WIDE} --allow_increase", WIDE),
    Arm("prune", "--use_bias"),
    Arm("prune", "--ma 0.9"),
    Arm("prune", "--regularization 1e-3"),
    Arm("prune", "--fisher_type exp"),
    Arm("prune", "--max_iter 2"),
    Arm("prune", "--back_ratio 0.1"),
    Arm("prune", "--back_ratio 0.1 --interpolation", "--back_ratio 0.1"),
    Arm("prune", "--max_iter 2 --back_ratio 0.1", "--max_iter 2"),
    Arm("prune", "--max_iter 2 --back_ratio 0.1 --pool_momentum 0.9", "--max_iter 2 --back_ratio 0.1"),
    Arm("prune", "--kd_weight 0.5"),
    Arm("prune", "--kd_weight 0.5 --kd_temperature 1", "--kd_weight 0.5"),
    Arm("prune", "--method eigendamage --normalize", "--method eigendamage"),
    Arm("prune", f"{BN_SCALE} --normalize", BN_SCALE),
    Arm("prune", f"{NUSPM} --nuclear_interval 10", NUSPM),
    *(Arm("rl", base, base) for base in ("", "--estimator gumbel")),
    Arm("rl", "--no-credit_scale"),
    Arm("rl", "--gamma 0.9"),
    Arm("rl", "--rl_warmup 0"),
    Arm("rl", "--exploration 0"),
    Arm("rl", "--temperature 2"),
    Arm("rl", "--entropy_bonus 0.01"),
    Arm("rl", "--gate_lr_factor 1"),
    Arm("rl", "--gate_grad_norm 0.01"),
    Arm("rl", "--price_step 0.1"),
    Arm("rl", "--rate_bound 0.45"),
    Arm("rl", "--rate_bound 0.45 --rate_bound_weight 50", "--rate_bound 0.45"),
    Arm("rl", "--kd_weight 0.5"),
    Arm("rl", "--estimator gumbel --temperature 2", "--estimator gumbel"),
)


def run(arm: Arm, work: Path, seed: int) -> Line:
    """Train the arm, if that is not done, and read the test images once: as routed in stage 3."""
    common = ["--result_dir", str(work), "--seed", str(seed)]
    parent = finished(work, f"parent-{seed}", "sp", sp.main, [*shlex.split(PARENT), *common])
    argv = [*shlex.split(f"{SHARED[arm.stage]} {arm.flags}"), *common, "--checkpoint_file", str(parent.path)]
    if arm.stage == "prune":
        argv += ["--config_path", str(write_config(work))]
    name = f"{arm.stage}{arm.flags.replace(' ', '')}-{seed}"
    folder = finished(work, name, arm.stage, STAGES[arm.stage], argv)
    result = folder.read_json("result.json")
    config = resolve(SpConfig(), [*shlex.split(NETWORK), *common], prog="", description="").config
    images = RunImages.of(load_images(config.data), None, config, torch.device("cpu"))
    net, _ = folder.load_network()
    found = evaluate(net, images.test(), "masked" if arm.stage == "rl" else "always_on")
    correct = (found.predictions == found.labels).numpy()
    macs = result["test"]["routed"]["expected_macs"] if arm.stage == "rl" else result["macs"]["backbone"]
    return {
        "accuracy": float(correct.mean()), "correct": pack(correct), "images": len(correct),
        "share": macs / result["dense"]["macs"], "seconds": result["seconds"], "versions": result["versions"],
        "hardware": result["hardware"],
    }  # fmt: skip


def write_config(work: Path) -> Path:
    """An empty file of options, so that the defaults hold."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "defaults.json"
    path.write_text("{}")
    return path


def table(lines: Sequence[Line], stage: str) -> str:
    """Markdown: a row an arm, over its seeds, beside what it is held against."""
    rows = []
    for arm in ARMS:
        own, base = (of(lines, stage, flags) for flags in (arm.flags, arm.base))
        if arm.stage != stage or not own:
            continue
        seeds = sorted(own.keys() & base.keys())
        accuracies = " ".join(f"{100 * own[seed]['accuracy']:.1f}" for seed in sorted(own))
        compared = arm.flags != arm.base and bool(seeds)
        rows.append(
            (
                _name(arm.flags),
                f"{100 * np.mean([line['share'] for line in own.values()]):.1f}",
                accuracies,
                ahead(own, base, seeds) if compared else "",
                _name(arm.base) if compared else "",
            )
        )
    return Table(("Flags", "FLOPs %", "Accuracy %", "ahead by (95 %)", "of"), "lrrrl", rows).markdown()


def _name(flags: str) -> str:
    return f"`{flags}`" if flags else "defaults"


def of(lines: Sequence[Line], stage: str, flags: str) -> Mapping[int, Line]:
    """The lines of these flags, by seed."""
    return {line["seed"]: line for line in lines if (line["stage"], line["flags"]) == (stage, flags)}


def ahead(own: Mapping[int, Line], base: Mapping[int, Line], seeds: Sequence[int]) -> str:
    """The difference over all images of all seeds that both have."""
    bits = [np.concatenate([unpack(side[s]["correct"], side[s]["images"]) for s in seeds]) for side in (own, base)]
    found = paired_bootstrap(*bits)
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("results/options"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--table", action="store_true", help="print the tables, run nothing")
    options = parser.parse_args()
    if options.table:
        lines = read_lines(RESULTS)
        print("\n\n".join(f"{MEANING[stage]}\n\n{table(lines, stage)}" for stage in STAGES))
        return
    for seed in options.seeds:
        for arm in ARMS:
            key = {"stage": arm.stage, "flags": arm.flags, "seed": seed}
            if arm.stage in options.stages and find_line(read_lines(RESULTS), **key) is None:
                line = run(arm, options.work, seed)
                append_line(RESULTS, {**key, "shared": SHARED[arm.stage], "parent": PARENT, **line})
                print(
                    arm.stage,
                    arm.flags or "defaults",
                    seed,
                    f"{line['accuracy']:.2%} at {line['share']:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
