"""Details that the page shows of one row beyond the table: its layers, blocks, curves, gallery and origin."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from hybridprune.errors import UserError
from hybridprune.report.formats import title
from hybridprune.report.html import blocks, curves, layers
from hybridprune.report.html.gallery import Gallery, gallery
from hybridprune.report.html.provenance import Provenance, provenance
from hybridprune.report.rows import Row
from hybridprune.store.run_folder import RunFolder

ALIKE = "no gallery: the gates treat all test images alike, they execute the same blocks for each"


@dataclass(frozen=True)
class Options:
    """Options of the page's gallery; 0 ``images`` means that there is none."""

    images: int = 8
    """On each side: those that skip most, those that skip least."""
    limit: int = 2000
    """Test images that are routed to find them."""
    data_dir: str | None = None
    device: str | torch.device = "cpu"


@dataclass(frozen=True)
class Detail:
    """One row's part of the page. Where something cannot be shown, a sentence says why."""

    number: int
    heading: str
    row: Row
    shown: RunFolder
    """The run of the lowest seed, whose layers and images stand for all."""
    layers: list[layers.Layer]
    layers_figure: Markup | None
    layers_note: str
    blocks_figure: Markup | None
    curves: list[tuple[str, Markup]]
    gallery: Gallery | None
    gallery_note: str
    origins: list[Provenance]


def detail(number: int, row: Row, options: Options) -> Detail:
    """Read a row's run folders."""
    folders = [RunFolder(run.path.parent) for run in row.runs]
    results = [folder.read_json("result.json") for folder in folders]
    found, note = _layers(folders[0])
    rates = [rates for result in results if (rates := _block_rates(result))]
    equal = [each for each in rates if len(each) == len(rates[0])]
    shown, gallery_note = _gallery(row, folders[0], _block_rates(results[0]), options)
    return Detail(
        number=number,
        heading=title(row),
        row=row,
        shown=folders[0],
        layers=found,
        layers_figure=layers.draw(found) if any(layer.before != layer.after for layer in found) else None,
        layers_note=note,
        blocks_figure=blocks.draw(equal) if equal else None,
        curves=curves.draw([folder.read_metrics() for folder in folders]),
        gallery=shown,
        gallery_note=gallery_note,
        origins=[provenance(run, result) for run, result in zip(row.runs, results, strict=True)],
    )


def _layers(run: RunFolder) -> tuple[list[layers.Layer], str]:
    try:
        spec = run.read_spec()
        found = layers.layers(spec.gated, spec.input_size)
    except (UserError, ValueError) as error:
        return [], f"The layers cannot be shown: {error}."
    if all(layer.before == layer.after for layer in found):
        return found, "No layer was cut."
    return found, ""


def _block_rates(result: dict[str, Any]) -> list[float]:
    """Of the test images; none where the network has no gates or the run does not say."""
    rates = result["test"]["routed"].get("block_rates")
    valid = isinstance(rates, list) and all(isinstance(rate, int | float) and 0 <= rate <= 1 for rate in rates)
    return rates if valid else []


def _gallery(row: Row, run: RunFolder, rates: Sequence[float], options: Options) -> tuple[Gallery | None, str]:
    if not rates:
        return None, ""
    if all(rate in (0, 1) for rate in rates):
        return None, f"{ALIKE}."
    if options.images == 0:
        return None, "No gallery was asked for (--gallery 0)."
    print(f"gallery: routing test images of {run.path}", file=sys.stderr)
    dense = statistics.mean(record.dense_macs for record in row.runs)
    try:
        found = gallery(
            run,
            dense_macs=round(dense),
            shown=options.images,
            limit=options.limit,
            data_dir=options.data_dir,
            device=options.device,
        )
    except UserError as error:
        return None, f"No gallery: the network or its images could not be read ({error})."
    return found, "" if found else f"{ALIKE}."
