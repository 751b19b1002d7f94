"""Other tasks than one class an image, and other batches than pairs."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from tests.foreign.network import CLASSES, COUNTS, SIZE, Net, draw, pairs
from tests.foreign.training import plain


class Named(nn.Module):
    """Takes keywords and gives a dictionary, with the loss if there are labels: Hugging Face's way."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def named() -> list[dict[str, Tensor]]:
    """Batches as a collating processor gives them."""
    return [{"pixel_values": images, "labels": labels} for images, labels in pairs()]


class Encoding(UserDict[str, Tensor]):
    """A batch whose items are attributes, too, and that goes to a device by itself."""

    def __getattr__(self, name: str) -> Tensor:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def to(self, device: torch.device) -> Encoding:
        return Encoding({key: value.to(device) for key, value in self.data.items()})


class TwoInputs(nn.Module):
    """An image and a table row."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.row, self.head = nn.Linear(5, 16), nn.Linear(32, CLASSES)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.image(image).mean((2, 3)), self.row(row)], 1)))


def rows_beside() -> list[Any]:
    """``((images, rows), labels)``."""
    return [((images, images.flatten(1)[:, :5]), labels) for images, labels in pairs()]


class UNet(nn.Module):
    """Dense logits ``[B, classes, H, W]`` and a skipped concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y = self.up(self.deep(F.max_pool2d(x, 2)))
        return self.head(self.join(torch.cat([x, y], 1)))


def masks() -> list[Any]:
    """A class for each pixel."""
    source = draw(1)
    return [(images, torch.randint(CLASSES, (len(images), SIZE, SIZE), generator=source)) for images, _ in pairs()]


class Segmenter(nn.Module):
    """torchvision's way: a dictionary of dense logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.net(x)}


class Detailed(nn.Module):
    """Gives its features beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = plain()[:9], nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x).mean((2, 3))
        return self.head(x), x


def with_outputs(outputs: int) -> nn.Module:
    """The plain network with another last layer."""
    return nn.Sequential(*list(plain())[:-1], nn.Linear(16, outputs))


def with_targets(*shape: int, binary: bool = False) -> list[Any]:
    """Batches of images and numbers ``[B, *shape]``, or zeros and ones."""
    source = draw(2)
    numbers = [torch.randn(n, *shape, generator=source) for n in COUNTS]
    return [(images, (y > 0).float() if binary else y) for (images, _), y in zip(pairs(), numbers, strict=True)]


def triples() -> list[Any]:
    """Images, labels, and the number of each image."""
    return [(images, labels, torch.arange(len(labels))) for images, labels in pairs()]


def small_backbone(norm: bool) -> nn.Sequential:
    """Features ``[B, 16, H/4, W/4]`` for a detector, with the attribute that torchvision's detectors ask for."""
    layers = [nn.Conv2d(3, 16, 3, 2, 1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1)]
    net = nn.Sequential(*layers, nn.ReLU())
    net.out_channels = 16  # type: ignore[assignment]
    return net


ANCHORS = {"sizes": ((8, 12),), "aspect_ratios": ((1.0,),)}
DETECTOR: dict[str, Any] = {"min_size": 32, "max_size": 32}


def faster_rcnn() -> nn.Module:
    """Two stages."""
    pool = MultiScaleRoIAlign(["0"], 3, 2)
    return FasterRCNN(
        small_backbone(norm=True),
        rpn_anchor_generator=AnchorGenerator(**ANCHORS),
        box_roi_pool=pool,
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(144, 48), nn.ReLU()),
        box_predictor=Predictor(),
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=16,
        **DETECTOR,
    )


class Predictor(nn.Module):
    """Classes and boxes of each region."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(48, 3), nn.Linear(48, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


def retina_net() -> nn.Module:
    """One stage, whose heads run on every level, here one."""
    return RetinaNet(small_backbone(norm=False), 3, anchor_generator=AnchorGenerator(**ANCHORS), **DETECTOR)


def scenes() -> list[Any]:
    """Lists of images and of their boxes, as torchvision's detectors take them."""
    source = draw(3)
    boxes = torch.tensor([[2.0, 3.0, 12.0, 14.0], [10.0, 8.0, 28.0, 30.0]])
    return [
        (
            [torch.rand(3, 32, 32, generator=source) for _ in range(count)],
            [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in range(count)],
        )
        for count in (2, 3)
    ]


def detected(model: nn.Module, batch: Any) -> Any:
    """A detector's losses, which it gives in training mode only; its norms stay as they are."""
    heads = [model, *(model.get_submodule(name) for name in ("rpn", "roi_heads") if hasattr(model, name))]
    modes = [head.training for head in heads]
    for head in heads:
        head.training = True
    try:
        return model(*batch)
    finally:
        for head, mode in zip(heads, modes, strict=True):
            head.training = mode


def boxes(model: nn.Module, batch: Any) -> Any:
    """What a detector finds."""
    return model(batch[0])


def sum_of_losses(output: Any, batch: Any) -> Tensor:
    """torchvision's reference training."""
    return torch.stack(list(output.values())).sum()


NETS = {
    "dictionaries": Net(
        Named,
        named,
        loss=lambda output, batch: F.cross_entropy(output["logits"], batch["labels"]),
        forward=lambda model, batch: model(batch["pixel_values"]),
        refused={"deploy": "tensor"},
    ),
    "loss within": Net(
        Named,
        named,
        loss=lambda output, batch: output["loss"],
        forward=lambda model, batch: model(**batch),
        refused={"deploy": "tensor"},
    ),
    "attributes": Net(
        Named,
        lambda: [Encoding(batch) for batch in named()],
        loss=lambda output, batch: F.cross_entropy(output["logits"], batch.labels),
        forward=lambda model, batch: model(batch.pixel_values),
        refused={"deploy": "tensor"},
    ),
    "three items": Net(plain, triples, forward=lambda model, batch: model(batch[0])),
    "two inputs": Net(
        TwoInputs, rows_beside, forward=lambda model, batch: model(*batch[0]), refused={"deploy": "tensor"}
    ),
    "segmentation": Net(UNet, masks),
    "segmentation in a dictionary": Net(
        Segmenter, masks, forward=lambda model, batch: model(batch[0])["out"], refused={"deploy": "tensor"}
    ),
    "tuple of outputs": Net(Detailed, forward=lambda model, batch: model(batch[0])[0], refused={"deploy": "tensor"}),
    "several labels": Net(lambda: with_outputs(5), lambda: with_targets(5, binary=True), "bce"),
    "one logit": Net(lambda: with_outputs(1), lambda: with_targets(1, binary=True), "bce"),
    "regression": Net(lambda: with_outputs(2), lambda: with_targets(2), "mse"),
    "faster r-cnn": Net(faster_rcnn, scenes, sum_of_losses, detected, boxes, refused={"deploy": "tensor"}),
    "retinanet": Net(retina_net, scenes, sum_of_losses, detected, boxes, refused={"deploy": "tensor"}),
}
