"""The operating points of one trained policy, without retraining: ``hybridprune curve RUN``.

Thresholds on the gates' logits are swept on the validation images, from executing every block to executing none; each
gives an expected cost and an accuracy. Prints the table, and writes it into RUN with its numbers and a plot: sweep.md,
sweep.json, sweep.png. In sweep.json, ``threshold`` is null at these two extremes, since JSON knows no infinity;
``probability``, the threshold's sigmoid, is 0 and 1 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hybridprune.commands.finished_run import FinishedRun, Parser, add_batch_size
from hybridprune.engine.threshold import OperatingPoint, operating_point
from hybridprune.errors import UserError, need_packages
from hybridprune.json_text import json_text
from hybridprune.stages.console import say
from hybridprune.store.files import write_bytes
from hybridprune.tables import Table

Point = dict[str, Any]
FILES = ("sweep.md", "sweep.json", "sweep.png")


def main(argv: Sequence[str], prog: str = "python -m hybridprune.sweep") -> None:
    """The command."""
    parser = Parser(__doc__, prog)
    add_batch_size(parser)
    parser.add_argument("--points", type=int, default=9, help="thresholds between the extremes (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=("test", "validation"),
        default="validation",
        help="test: measure every threshold on the test images too, beside the validation images, by which to choose "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder of sweep.md, sweep.json, sweep.png (default: RUN)"
    )
    arguments = parser.parse_args(argv)
    if arguments.points < 1:
        raise UserError(f"--points {arguments.points}: must be at least 1")
    need_packages("sweep.png", "matplotlib", ["matplotlib"])  # before the minutes that it takes
    run = FinishedRun.load(arguments)
    run.need_gates()
    if arguments.output is None:
        run.run.refuse_links(*FILES)
    points = sweep(run, arguments.points, arguments.split == "test")
    text = table(points)
    folder = arguments.output or run.run.path
    _write(folder, points, text)
    print(text, end="")
    say(f"written: {', '.join(str(folder / name) for name in FILES)}")


def thresholds(logits: torch.Tensor, points: int) -> list[float]:
    """Quantiles of the logits ``[M, N]``, the policy's own 0, and inf, which executes no block; rising, each once."""
    shares = (torch.arange(points) + 0.5) / points
    quantiles = torch.quantile(logits.flatten().double()[: 2**24], shares.double()).tolist()
    return sorted({0.0, math.inf, *quantiles})


def sweep(run: FinishedRun, points: int, test: bool) -> list[Point]:
    """Measure every threshold on validation and, if wanted, on the test images."""
    validation = run.batches("validation")
    always_on = operating_point(run.net, validation, run.cost, -math.inf)
    others = thresholds(always_on.evaluation.gate_logits, points)
    found = [always_on, *(operating_point(run.net, validation, run.cost, threshold) for threshold in others)]
    return [_point(run, point, test) for point in found]


def _point(run: FinishedRun, point: OperatingPoint, test: bool) -> Point:
    figures: Point = {
        "threshold": point.threshold if math.isfinite(point.threshold) else None,
        "probability": float(torch.tensor(point.threshold, dtype=torch.float64).sigmoid()),
        **_figures(point, run.dense_macs),
    }
    if test:
        measured = operating_point(run.net, run.batches("test"), run.cost, point.threshold)
        figures |= {f"test_{name}": value for name, value in _figures(measured, run.dense_macs).items()}
    return figures


def _figures(point: OperatingPoint, dense_macs: float) -> Point:
    rates = point.evaluation.block_rates
    return {
        "flops": 2 * point.macs,
        "dense_share": point.macs / dense_macs,
        "accuracy": point.evaluation.accuracy,
        "loss": point.evaluation.loss,
        "mean_rate": sum(rates) / len(rates),
    }


def table(points: Sequence[Point]) -> str:
    """Markdown, one row per threshold."""
    tested = "test_accuracy" in points[0]
    head = ["Logit above", "Probability above", "GFLOPs", "Dense FLOPs %", "Execution rate", "Validation accuracy %"]
    head += ["Test GFLOPs", "Test accuracy %"] if tested else []
    body = []
    for point in points:
        cells = [
            _limit(point),
            f"{point['probability']:.4g}",
            f"{point['flops'] / 1e9:.4g}",
            f"{100 * point['dense_share']:.2f}",
            f"{point['mean_rate']:.3f}",
            f"{100 * point['accuracy']:.2f}",
        ]
        cells += [f"{point['test_flops'] / 1e9:.4g}", f"{100 * point['test_accuracy']:.2f}"] if tested else []
        body.append(cells)
    shown = Table(head, "r" * len(head), body).markdown()
    return "\n".join([shown, "", "Expected FLOPs = 2 x MACs, gates counted. Logit 0 is the policy as trained.", ""])


def _limit(point: Point) -> str:
    if point["threshold"] is None:
        return "all run" if point["probability"] == 0 else "none runs"
    return f"{point['threshold']:.6g}"


def best(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper or equally cheap one is as accurate as, by cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p["flops"], -p["accuracy"])):
        if not kept or point["accuracy"] > kept[-1]["accuracy"]:
            kept.append(point)
    return kept


def plot(points: Sequence[Point]) -> bytes:
    """Validation accuracy over GFLOPs as PNG; the line joins the points worth choosing."""
    # Here and not above: matplotlib is slow to import and writes a font cache into the user's home.
    from matplotlib.figure import Figure

    from hybridprune.report.plot import encode

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="expected GFLOPs, gates counted", ylabel="validation accuracy (%)")
    for chosen, style in ((points, "o"), (best(points), "-")):
        axes.plot([p["flops"] * 1e-9 for p in chosen], [100 * p["accuracy"] for p in chosen], style, color="C0")
    axes.grid(alpha=0.3)
    return encode(figure, "png")


def _write(folder: Path, points: Sequence[Point], text: str) -> None:
    contents = (text.encode(), f"{json_text(points, indent=2)}\n".encode(), plot(points))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(FILES, contents, strict=True):
            write_bytes(folder / name, content)
    except OSError as error:
        raise UserError(f"--output {folder}: can't be written ({error.strerror}); choose another folder") from error
