"""Tiny-ImageNet (Le & Yang 2015, CS231n): 200 classes of ImageNet at 64 x 64 pixels, in the folders of its archive."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from hybridprune.data.dataset import Dataset
from hybridprune.data.tree import TreeFile, decode_tree
from hybridprune.data.unpacked import Unpacked
from hybridprune.errors import UserError

TINY_IMAGENET = Unpacked(
    "tiny-imagenet",
    "Tiny-ImageNet",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ("train", "val/images", "val/val_annotations.txt"),
)
_MEAN = (0.48024578664982126, 0.44807218089384643, 0.3975477478649648)
_STD = (0.2769864069088257, 0.26906448510256, 0.282081906210584)
"""As the code of EigenDamage has them: utils/data_utils.py of github.com/alecwangcq/EigenDamage-Pytorch."""
_SUFFIXES = (".jpeg", ".jpg")


def load_tiny_imagenet(
    data_dir: str | None, *, resize: int, num_workers: int, cache_dir: str | None, digest: str | None = None
) -> Dataset:
    """Load ``train/<wnid>/images/*.JPEG``, and the images of ``val``, which ``val/val_annotations.txt`` labels.

    These are the test images, for those of its ``test`` have no labels. Classes are the WordNet ids in alphabetical
    order. Pixels are normalised by the published mean and deviation. Raises ``UserError`` if files are missing or hold
    anything else.
    """
    root = TINY_IMAGENET.folder(data_dir)
    try:
        classes = tuple(sorted(entry.name for entry in os.scandir(root / "train") if entry.is_dir()))
        labels = {name: label for label, name in enumerate(classes)}
        files = {
            "train": [file for name in classes for file in _training(root / "train" / name / "images", labels[name])],
            "test": list(_annotated(root / "val", labels)),
        }
    except OSError as error:
        raise UserError(f"--data_dir {root}: cannot be read ({error}); {TINY_IMAGENET.remedy}") from error
    missing = set(classes) - {classes[file.label] for file in files["test"]}
    if len(classes) < 2 or missing:
        lacks = (
            f"val has no image of {', '.join(sorted(missing)[:5])}" if missing else "train has fewer than two classes"
        )
        raise UserError(f"--data_dir {root}: {lacks}; {TINY_IMAGENET.remedy}")
    images, found = decode_tree(root, files, resize=resize, num_workers=num_workers, cache_dir=cache_dir, digest=digest)
    return Dataset(
        name=TINY_IMAGENET.name,
        train=images["train"],
        test=images["test"],
        classes=classes,
        mean=_MEAN,
        std=_STD,
        flippable=True,
        digest=found,
    )


def _training(folder: Path, label: int) -> list[TreeFile]:
    """The images of one class; UserError if there is none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(_SUFFIXES))
    if not names:
        raise UserError(f"{folder}: holds no .JPEG; {TINY_IMAGENET.remedy}")
    return [TreeFile.of(str(folder / name), f"train/{folder.parent.name}/{name}", label) for name in names]


def _annotated(folder: Path, labels: Mapping[str, int]) -> Iterator[TreeFile]:
    """The images that the annotations name, in their order: a file, its WordNet id and a box a line."""
    annotations = folder / "val_annotations.txt"
    for number, line in enumerate(annotations.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in labels or name != os.path.basename(name):
            raise UserError(
                f"{annotations}, line {number}: {line[:60]!r} is no file and a class of train; {TINY_IMAGENET.remedy}"
            )
        yield TreeFile.of(str(folder / "images" / name), f"test/{wnid}/{name}", labels[wnid])
