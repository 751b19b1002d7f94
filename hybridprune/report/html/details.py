"""Details that the page shows of one row beyond the table: layers, rates, curves, routed images and origin."""

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
from hybridprune.report.html.escalation import Escalation, escalation
from hybridprune.report.html.gallery import Gallery, gallery
from hybridprune.report.html.provenance import Provenance, provenance
from hybridprune.report.html.routed_images import RoutedImages, route_images
from hybridprune.report.rows import Row
from hybridprune.store.run_folder import RunFolder

ALIKE = "No gallery: the gates treat all test images alike, they execute the same {} for each."


@dataclass(frozen=True)
class Options:
    """Options of the page's gallery; 0 ``images`` means that no image is routed for it."""

    images: int = 16
    """On each side: those that skip most, those that skip least; or those that stop, those that go on."""
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
    escalation: Escalation | None
    """Of a cascade, on the images that the gallery is chosen from."""
    origins: list[Provenance]


def heading(row: Row) -> str:
    """The row's name as the table has it, and whether it is of cascades."""
    return f"{title(row)}, cascade" if row.cascade else title(row)


def detail(number: int, row: Row, options: Options) -> Detail:
    """Read a row's run folders."""
    folders = [RunFolder(run.path.parent) for run in row.runs]
    results = [folder.read_json("result.json") for folder in folders]
    found, note = _layers(folders[0])
    rates = [rates for result in results if (rates := _block_rates(result))]
    equal = [each for each in rates if len(each) == len(rates[0])]
    routed, note_of_images = _routed(row, folders[0], _block_rates(results[0]), options)
    dense = round(statistics.mean(record.dense_macs for record in row.runs))
    shown = routed and gallery(routed, dense_macs=dense, shown=options.images)
    return Detail(
        number=number,
        heading=heading(row),
        row=row,
        shown=folders[0],
        layers=found,
        layers_figure=layers.draw(found) if any(layer.before != layer.after for layer in found) else None,
        layers_note=note,
        blocks_figure=blocks.draw(equal, row.cascade) if equal else None,
        curves=curves.draw([folder.read_metrics() for folder in folders]),
        gallery=shown,
        gallery_note=_alike(row) if routed and not shown else note_of_images,
        escalation=routed and escalation(routed),
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


def _routed(row: Row, run: RunFolder, rates: Sequence[float], options: Options) -> tuple[RoutedImages | None, str]:
    """Test images that the gates have routed, or why there are none."""
    if not rates:
        return None, ""
    if all(rate in (0, 1) for rate in rates):
        return None, _alike(row)
    if options.images == 0:
        return None, "No gallery was asked for (--gallery 0)."
    print(f"gallery: routing test images of {run.path}", file=sys.stderr)
    try:
        return route_images(run, options.limit, options.data_dir, options.device), ""
    except UserError as error:
        return None, f"No gallery: the network or its images could not be read ({error})."


def _alike(row: Row) -> str:
    return ALIKE.format("members" if row.cascade else "blocks")
