#!/usr/bin/env bash
# The published table in one command: CIFAR-100, the wide ResNet-32 (64-128-256 channels; 7,451,044 parameters, 1.1007
# GMACs, hence 2.2014 GFLOPs an image), all three stages with the full schedules, three seeds, and the report.
# The row to beat: dense 78.19 % at 2.20 GFLOPs; static 77.48 % at 0.51; static + dynamic 77.36 % at 0.40.
#
#     benchmarks/reproduce_published.sh                   # takes all GPUs that nvidia-smi lists
#     GPUS=2 RESULTS=/data/results benchmarks/reproduce_published.sh
#     benchmarks/reproduce_published.sh --fast            # shorter schedules and a cascade: one GPU, 15 minutes a seed
#
# --fast is another experiment with the same table: benchmarks/fast_row.py says what it does, its FLOPs (21 PFLOP a seed
# in bf16), what a GPU has to sustain for them (42 TFLOP/s), and its own variables. All below is of the full schedules.
#
# Interrupted or failed, the same command goes on: finished runs are kept, begun ones resumed.
#
# COST, AN ESTIMATE from FLOPs, not a measurement: forward + backward = 3 x forward, 45,000 training images an epoch.
#     stage 1: 200 epochs x 45,000 x 3 x 2.2014 GFLOPs                                     59.4 PFLOP
#     stage 2:  60 epochs x 45,000 x 3 x 0.51 GFLOPs (at most; fewer parameters cut: less)  4.1 PFLOP
#     stage 3: 100 epochs x 45,000 x 5 x 0.51 GFLOPs (3 and two rollouts without gradient) 11.5 PFLOP
#     three seeds:                                                                          225 PFLOP
# At a sustained 10 TFLOP/s this is 6.3 GPU hours, at 3 TFLOP/s 21; validation after each epoch adds about 4 %. What a
# GPU sustains on images this small depends on it, on PRECISION and on the batch. On CPUs it is weeks.
#
# With several GPUs, each run is started by torchrun on all of them. JOBS=n in addition runs n of them at a time.
# What else the environment may change, with its default (shorter schedules are another experiment, not the published):
#     PYTHON          .venv/bin/python of the repository, else python3
#     RESULTS         results/published
#     DATASET         cifar100 (downloaded); also tree, cifar10, digits
#     DATA_DIR        data
#     SEEDS           0,1,2
#     GPUS            as many as nvidia-smi lists, else 1 process
#     DEVICE          auto
#     JOBS            1
#     PRECISION       bf16
#     DEPTH WIDTH RESIZE                      32 64 32
#     EPOCHS_SP EPOCHS_PRUNE EPOCHS_RL        200 30,60 100 (stage 2: at compression 0 and 1)
#     STATIC_FLOPS DYNAMIC_FLOPS              0.51e9 0.40e9 (a share of the dense FLOPs if <= 1)
#     DRY_RUN         empty; 1 prints the commands and stops
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [[ ${1:-} == --fast ]]; then
    exec "$PYTHON" -m benchmarks.fast_row
elif [[ $# -gt 0 ]]; then
    echo "error: $1: unknown; the one flag is --fast" >&2
    exit 2
fi
if [[ -z ${GPUS:-} ]]; then
    GPUS=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || GPUS=0
    GPUS=$((GPUS > 1 ? GPUS : 1))
fi
export RESULTS=${RESULTS:-results/published} ROOT=$root

mkdir -p "$RESULTS"
"$PYTHON" - > "$RESULTS/grid.json" <<'PYTHON'
import json
import os


def setting(name: str, default: str) -> str:
    return os.environ.get(name) or default


start, _, end = setting("EPOCHS_PRUNE", "30,60").partition(",")
dataset = setting("DATASET", "cifar100")
grid = {
    "result_dir": os.environ["RESULTS"],
    "seeds": [int(seed) for seed in setting("SEEDS", "0,1,2").split(",")],
    "common": {
        "dataset": dataset,
        "data_dir": setting("DATA_DIR", "data"),
        "download": dataset.startswith("cifar"),
        "resize": int(setting("RESIZE", "32")),
        "depth": int(setting("DEPTH", "32")),
        "width": int(setting("WIDTH", "64")),
        "precision": setting("PRECISION", "bf16"),
        "device": setting("DEVICE", "auto"),
    },
    "sp": {"epochs": int(setting("EPOCHS_SP", "200")), "lr": 0.1, "bs": 128},
    "prune": {
        "config_path": os.path.join(os.environ["ROOT"], "config.json"),
        "pruner_id": 1,
        "recipe": "published",
        "target_flops": float(setting("STATIC_FLOPS", "0.51e9")),
        "epochs_start": int(start),
        "epochs_end": int(end or start),
    },
    "rl": {
        "epochs": int(setting("EPOCHS_RL", "100")),
        "lr": 0.001,
        "bs": 256,
        "alpha": 0.1,
        "gamma": 1,
        "rl_weight": 0.1,
        "target_flops": float(setting("DYNAMIC_FLOPS", "0.40e9")),
    },
}
print(json.dumps(grid, indent=2))
PYTHON

"$PYTHON" -m hybridprune.sweep_runs "$RESULTS/grid.json" --nproc_per_run "$GPUS" --jobs "${JOBS:-1}" \
    ${DRY_RUN:+--dry-run}
[[ -n ${DRY_RUN:-} ]] && exit
"$PYTHON" -m hybridprune.report "$RESULTS" --html "$RESULTS/report.html" --output "$RESULTS/report.md" \
    --device "${DEVICE:-auto}"
cat "$RESULTS/report.md"
echo "the page: $RESULTS/report.html" >&2
