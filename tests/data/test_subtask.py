"""Some classes of a data set alone."""

from __future__ import annotations

import pytest
import torch

from hybridprune.data import hold_out, of_classes, validation_split
from hybridprune.errors import UserError
from tests.data.test_held_out import DATA


@pytest.mark.parametrize("held", [False, True])
def test_all_parts_have_images_of_these_classes_alone_and_all_of_them(held: bool) -> None:
    whole = hold_out(DATA) if held else DATA
    data = of_classes(whole, ["c", "0"])
    split = validation_split(data)
    own = split.of_classes(data.subtask, data.train.labels)
    assert data.subtask == (0, 2) and data.classes == DATA.classes and own.total == split.total
    for ids, every in ((own.train, split.train), (own.validation, split.validation)):
        assert ids.tolist() == [n for n in every.tolist() if int(data.train.labels[n]) in (0, 2)]
    expected = [n for n in range(len(whole.test)) if int(whole.test.labels[n]) in (0, 2)]
    assert data.test.labels.unique().tolist() == [0, 2]
    assert torch.equal(data.test.pixels(torch.arange(len(data.test))), whole.test.pixels(torch.tensor(expected)))
    assert split.of_classes((), data.train.labels) is split


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a", "x"], "is none of the 3 classes"), (["a", "3"], "is none of"), (["a"], "two"), (["a", "0"], "two")],
)
def test_what_is_no_class_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"--classes .*{said}"):
        of_classes(DATA, names)
