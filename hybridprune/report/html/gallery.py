"""The test images that a run's gates skip most and least for, as data URIs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hybridprune.data import EvalBatches
from hybridprune.engine.evaluate import Evaluation, evaluate
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.measure.cost import count
from hybridprune.store.run_folder import RunFolder

BATCH = 128


@dataclass(frozen=True)
class Shown:
    """One image with what the network made of it."""

    index: int
    """Among the test images."""
    label: str
    prediction: str
    executed: int
    """Blocks, of the gated ones."""
    share: float
    """MACs spent, gates counted, of the unpruned network's."""
    png: str
    """A data URI."""


@dataclass(frozen=True)
class Gallery:
    """The cheapest and the dearest images, and how many images execute how many blocks."""

    least: list[Shown]
    most: list[Shown]
    blocks: int
    images: int
    total: int
    """Test images that there are; ``images`` of them, evenly spaced, were routed."""
    counts: Mapping[int, int]
    """Executed blocks -> images."""


def gallery(
    run: RunFolder, *, dense_macs: int, shown: int, limit: int, data_dir: str | None, device: str | torch.device
) -> Gallery | None:
    """Route up to ``limit`` test images; None if the gates treat all of them alike.

    Raises UserError if the network or its images cannot be read.
    """
    net, spec = run.load_network()
    test = load_dataset_of(run, spec, data_dir).test
    ids = torch.arange(len(test))
    if len(ids) > limit:
        ids = torch.linspace(0, len(test) - 1, limit).round().long()
    cost = count(net, spec.input_size)
    batches = EvalBatches(test, ids, batch_size=BATCH, mean=spec.mean, std=spec.std, device=device, channels_last=True)
    routed = evaluate(net.to(device), batches, "executed")
    order = cheapest_first(routed, cost.block_macs)
    if order is None:
        return None
    fixed = cost.fixed_macs + sum(cost.gate_macs)

    def show(place: int) -> Shown:
        decisions = routed.decisions[place].double()
        macs = fixed + float(decisions @ torch.tensor(cost.block_macs, dtype=torch.float64))
        return Shown(
            index=int(ids[place]),
            label=spec.class_names[int(routed.labels[place])],
            prediction=spec.class_names[int(routed.predictions[place])],
            executed=int(decisions.sum()),
            share=macs / dense_macs,
            png=data_uri(test.pixels(ids[place : place + 1])[0]),
        )

    half = min(shown, len(order) // 2)
    return Gallery(
        least=[show(place) for place in order[:half]],
        most=[show(place) for place in reversed(order[len(order) - half :])],
        blocks=net.num_gates,
        images=len(ids),
        total=len(test),
        counts=dict(sorted(Counter(routed.decisions.sum(1).int().tolist()).items())),
    )


def cheapest_first(routed: Evaluation, block_macs: Sequence[int]) -> list[int] | None:
    """Places of the images by the MACs they spend, ties by their mean gate logit; None if all execute the same blocks.

    ``block_macs`` are those of the gated blocks, as the columns of ``routed.decisions``.
    """
    if not routed.decisions.numel() or bool((routed.decisions == routed.decisions[0]).all()):
        return None
    spent = (routed.decisions.double() @ torch.tensor(block_macs, dtype=torch.float64)).tolist()
    willing = routed.gate_logits.double().mean(1).tolist()
    return sorted(range(len(spent)), key=lambda place: (spent[place], willing[place], place))


def data_uri(pixels: Tensor) -> str:
    """A uint8 image ``[3, H, W]`` as PNG in a URI."""
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
