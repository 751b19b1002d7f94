"""The test images that a run's gates skip most and least for, or stop early and send on, as data URIs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hybridprune.engine.evaluate import Evaluation
from hybridprune.report.html.routed_images import RoutedImages


@dataclass(frozen=True)
class Shown:
    """One image with what the network made of it."""

    index: int
    """Among the test images."""
    label: str
    prediction: str
    executed: int
    """Blocks, of the gated ones, or members of a cascade beside the first."""
    share: float
    """MACs spent, gates counted, of the unpruned network's."""
    png: str
    """A data URI."""
    first: str = ""
    """The prediction of a cascade's first member."""
    margin: float = 0.0
    """How far the two highest probabilities of that member are apart."""


@dataclass(frozen=True)
class Gallery:
    """The cheapest and the dearest images, and how many images execute how many blocks or members."""

    least: list[Shown]
    """Of a cascade: images that stop at its first member."""
    most: list[Shown]
    """Of a cascade: images that go on."""
    gates: int
    cascade: bool
    images: int
    total: int
    """Test images that there are; ``images`` of them, evenly spaced, were routed."""
    counts: Mapping[int, int]
    """Executed blocks, or members beside the first -> images."""


def gallery(images: RoutedImages, *, dense_macs: int, shown: int) -> Gallery | None:
    """Choose images from both ends; None if the gates treat all of them alike."""
    routed, cost, margins = images.routed, images.cost, images.margins
    order = cheapest_first(routed, cost.block_macs)
    if order is None:
        return None
    fixed = cost.fixed_macs + sum(cost.gate_macs)

    def show(place: int) -> Shown:
        decisions = routed.decisions[place].double()
        macs = fixed + float(decisions @ torch.tensor(cost.block_macs, dtype=torch.float64))
        return Shown(
            index=int(images.ids[place]),
            label=images.class_of(routed.labels[place]),
            prediction=images.class_of(routed.predictions[place]),
            executed=int(decisions.sum()),
            share=macs / dense_macs,
            png=data_uri(images.test.pixels(images.ids[place : place + 1])[0]),
            first="" if images.first is None else images.class_of(images.first[place].argmax()),
            margin=0.0 if margins is None else float(margins[place]),
        )

    cheap = dear = len(order) // 2
    if margins is not None:
        dear = int(routed.decisions[:, 0].sum())
        cheap = len(order) - dear
    return Gallery(
        least=[show(place) for place in order[: min(shown, cheap)]],
        most=[show(place) for place in order[::-1][: min(shown, dear)]],
        gates=routed.decisions.shape[1],
        cascade=margins is not None,
        images=len(images.ids),
        total=len(images.test),
        counts=dict(sorted(Counter(routed.decisions.sum(1).int().tolist()).items())),
    )


def cheapest_first(routed: Evaluation, block_macs: Sequence[int]) -> list[int] | None:
    """Places of the images by the MACs they spend; None if all execute the same blocks.

    Ties are broken by the mean logit of the gates that were asked: behind the one that stops an image in a cascade
    the logits are -inf. ``block_macs`` are those of the gated blocks, as the columns of ``routed.decisions``.
    """
    if not routed.decisions.numel() or bool((routed.decisions == routed.decisions[0]).all()):
        return None
    spent = (routed.decisions.double() @ torch.tensor(block_macs, dtype=torch.float64)).tolist()
    logits = routed.gate_logits.double()
    willing = logits.where(logits != -torch.inf, torch.nan).nanmean(1).tolist()
    return sorted(range(len(spent)), key=lambda place: (spent[place], willing[place], place))


def data_uri(pixels: Tensor) -> str:
    """A uint8 image ``[3, H, W]`` as PNG in a URI."""
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
