"""Image data sets, in memory or streamed, their splits, and batches of them."""

from __future__ import annotations

from hybridprune.batch import Batch, Share
from hybridprune.data.augment import crop_flip, normalise
from hybridprune.data.batches import EvalBatches, TrainBatches, batch_sizes
from hybridprune.data.dataset import Dataset, ImageSet, LabelledImages
from hybridprune.data.held_out import hold_out, validation_split
from hybridprune.data.load import DATASETS, load_dataset
from hybridprune.data.split import Split, make_split
from hybridprune.data.subtask import of_classes

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "EvalBatches",
    "ImageSet",
    "LabelledImages",
    "Share",
    "Split",
    "TrainBatches",
    "batch_sizes",
    "crop_flip",
    "hold_out",
    "load_dataset",
    "make_split",
    "normalise",
    "of_classes",
    "validation_split",
]
