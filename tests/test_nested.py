"""Batches of any structure: counted, indexed, moved."""

from __future__ import annotations

from collections import UserDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from hybridprune.nested import images_in, joined, on_device, some_images, tensors_in, with_tensors

X, Y, Z = torch.arange(8.0).view(4, 2), torch.arange(4), torch.ones(4, 3)
IMAGES = [torch.ones(3, size, size) * size for size in (5, 6, 7, 8)]
Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (X, 4),
        ((X, Y), 4),
        ([X, Y, Z], 4),
        ({"image": X, "label": Y}, 4),
        (((X, Z), Y), 4),
        (({"image": X}, "some name"), 4),
        ((IMAGES, [{"boxes": Z}] * 4), 4),
        ((IMAGES, Y), 4),
        (Pair(X, Y), 4),
        ((X.numpy(), Y), 4),
        ({"image": X.numpy(), "name": "a"}, 4),
        (torch.tensor(1.0), None),
        (("name", 3), None),
        (None, None),
    ],
)
def test_images_are_counted(batch: Any, count: int | None) -> None:
    assert images_in(batch) == count


def test_images_are_taken_in_the_batchs_own_structure() -> None:
    scale = torch.ones(7)
    batch = {"image": X, "meta": {"label": Y, "names": list("abcd")}, "scale": scale, "epoch": 3}
    found = some_images(batch, [2, 0])
    assert found["image"].equal(X[[2, 0]]) and found["meta"]["label"].equal(Y[[2, 0]])
    assert found["meta"]["names"] == ["c", "a"] and found["scale"] is scale and found["epoch"] == 3
    images, targets = some_images((IMAGES, [{"boxes": n} for n in range(4)]), [3, 3])
    assert images[0] is images[1] is IMAGES[3] and targets == [{"boxes": 3}] * 2
    (x, z), y = some_images(((X, Z), Y), [1])
    assert x.equal(X[1:2]) and z.equal(Z[1:2]) and y.equal(Y[1:2])
    assert (some_images((X.numpy(), Y), [2])[0] == X[2:3].numpy()).all()
    pair = some_images(Pair(X, Y), [0])
    assert isinstance(pair, Pair) and pair.label.equal(Y[:1])


class Attributes(UserDict[str, Any]):
    """A dictionary with attributes, as tokenizers and image processors give."""

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]  # KeyError, which hasattr does not expect

    def to(self, device: str) -> Attributes:
        return Attributes({key: value.to(device) for key, value in self.data.items()})


def test_mappings_stay_of_their_kind() -> None:
    batch = Attributes(image=X, label=Y)
    assert some_images(batch, [1]).image.equal(X[1:2])
    assert with_tensors(batch, torch.neg).image.equal(-X)
    assert joined([batch, batch])[0].label.equal(torch.cat([Y, Y]))
    assert on_device(batch, "cpu").image is X
    assert some_images(defaultdict(list, image=X), [1])["image"].equal(X[1:2])


def test_tensors_are_moved_and_found_wherever_they_are() -> None:
    batch = {"image": X, "more": (Y, [Z], "name", None)}
    moved = on_device(batch, "meta")
    assert [t.device.type for t in tensors_in(moved)] == ["meta"] * 3 and moved["more"][2:] == ("name", None)
    assert list(map(id, tensors_in(batch))) == list(map(id, (X, Y, Z)))
    assert isinstance(on_device(Pair(X, Y), "cpu"), Pair)


def test_batches_are_joined_if_their_images_have_the_same_shape() -> None:
    batch = {"image": X, "meta": {"label": Y, "names": list("abcd")}, "scale": torch.ones(7), "epoch": 3}
    (found,) = joined([some_images(batch, [2, 0]), some_images(batch, [1])])
    wanted = some_images(batch, [2, 0, 1])
    assert found["image"].equal(wanted["image"]) and found["meta"]["label"].equal(wanted["meta"]["label"])
    assert found["meta"]["names"] == ["c", "a", "b"] and found["scale"].equal(torch.ones(7)) and found["epoch"] == 3
    (pair,) = joined([some_images(Pair(X, Y), [0]), some_images(Pair(X, Y), [1, 3])])
    assert isinstance(pair, Pair) and pair.image.equal(X[[0, 1, 3]]) and pair.label.equal(Y[[0, 1, 3]])
    ((array, _),) = joined([(X.numpy()[:1], Y[:1]), (X.numpy()[1:], Y[1:])])
    assert (array == X.numpy()).all()
    ((images, labels),) = joined([(IMAGES[:1], Y[:1]), (IMAGES[2:], Y[2:])])
    assert [*map(id, images)] == [*map(id, (IMAGES[0], IMAGES[2], IMAGES[3]))] and labels.equal(Y[[0, 2, 3]])
    (array,) = joined([X[:1].numpy(), X[2:].numpy()])
    assert isinstance(array, np.ndarray) and array.tolist() == X[[0, 2, 3]].tolist()
    different = [torch.ones(1, 4), torch.ones(1, 5)]
    assert joined(different) == different
