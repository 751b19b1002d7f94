"""A subtask: the images of some classes alone, whose ids and the others' stay as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from hybridprune.config.name_list import joined_names
from hybridprune.data.dataset import Dataset
from hybridprune.data.held_out import Part
from hybridprune.errors import UserError


def of_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with the test images of these classes alone; its ``subtask`` tells which train images count.

    A name that no class has may be a class's id. Train images keep their numbers, so that a split of all of them
    still holds. Raises UserError if a class is not there, is named twice or has no test image, or if there are fewer
    than two.
    """
    ids = [_class_id(dataset, name) for name in names]
    shown = joined_names(names)
    if len(set(ids)) < len(ids) or len(ids) < 2:
        raise UserError(f"--classes {shown}: name two different classes at least")
    chosen = tuple(sorted(ids))
    labels = dataset.test.labels
    missing = [dataset.classes[each] for each in chosen if not bool((labels == each).any())]
    if missing:
        raise UserError(f"--classes {shown}: there is no test image of {missing[0]}; leave it out")
    kept = torch.isin(labels, torch.tensor(chosen)).nonzero().flatten()
    return dataclasses.replace(dataset, test=Part(dataset.test, kept), subtask=chosen)


def _class_id(dataset: Dataset, name: str) -> int:
    if name in dataset.classes:
        return dataset.classes.index(name)
    if name.isdecimal() and int(name) < len(dataset.classes):
        return int(name)
    few = ", ".join(dataset.classes[:3])
    raise UserError(f"--classes {name}: is none of the {len(dataset.classes)} classes ({few}, ...) and no id of one")
