from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.data import Split, make_split
from hybridprune.errors import UserError

_COUNTS = st.lists(st.integers(2, 30), min_size=1, max_size=6)
_SEEDS = st.integers(0, 2**40)


def _labels(counts: list[int], seed: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@settings(deadline=None)
@given(_COUNTS, st.floats(0.01, 0.99), _SEEDS)
def test_split_is_a_stratified_partition(counts: list[int], fraction: float, seed: int) -> None:
    labels = _labels(counts, seed)
    split = make_split(labels, fraction, seed)
    assert sorted(split.train.tolist() + split.validation.tolist()) == list(range(len(labels)))
    for ids in (split.train, split.validation):
        assert ids.dtype == torch.int64 and ids.tolist() == sorted(ids.tolist())
    for label, count in enumerate(counts):
        share = (labels[split.validation] == label).sum().item()
        assert share == min(max(round(fraction * count), 1), count - 1)


def test_split_depends_on_the_seed_alone() -> None:
    labels = _labels([50, 50], seed=1)
    assert torch.equal(make_split(labels, 0.1, 3).validation, make_split(labels, 0.1, 3).validation)
    assert not torch.equal(make_split(labels, 0.1, 3).validation, make_split(labels, 0.1, 4).validation)


def test_split_of_sorted_labels_is_not_the_head_of_each_class() -> None:
    split = make_split(torch.repeat_interleave(torch.arange(4), 100), 0.1, 0)
    assert (split.validation % 100).max() > 50


def test_split_ignores_unused_labels() -> None:
    split = make_split(torch.tensor([0, 0, 3, 3]), 0.5, 0)
    assert len(split.train) == len(split.validation) == 2


@settings(deadline=None)
@given(_COUNTS, _SEEDS)
def test_json_round_trip(counts: list[int], seed: int) -> None:
    split = make_split(_labels(counts, seed), 0.2, seed)
    again = Split.from_json(json.loads(json.dumps(split.to_json())))
    assert torch.equal(again.train, split.train) and torch.equal(again.validation, split.validation)
    assert again.total == split.total


@pytest.mark.parametrize("validation", [[3], [-1], [1, 1], [2, 1]])
def test_json_with_bad_ids_is_refused(validation: list[int]) -> None:
    with pytest.raises(ValueError, match="below 3"):
        Split.from_json({"validation": validation, "total": 3})


@settings(deadline=None)
@given(_COUNTS, st.integers(1, 200), _SEEDS)
def test_limit_takes_equally_many_of_each_class_that_has_them(counts: list[int], n: int, seed: int) -> None:
    labels = _labels(counts, seed)
    split = make_split(labels, 0.2, seed)
    limited = split.limit_train(n, labels, seed)
    assert len(limited.train) == min(n, len(split.train))
    assert set(limited.train.tolist()) <= set(split.train.tolist())
    assert limited.train.tolist() == sorted(limited.train.tolist())
    assert torch.equal(limited.validation, split.validation)
    kept = labels[limited.train].bincount(minlength=len(counts))
    available = labels[split.train].bincount(minlength=len(counts))
    assert all(kept[c] >= kept.max() - 1 or kept[c] == available[c] for c in range(len(counts)))


def test_limit_is_nested_and_seeded_and_survives_storage() -> None:
    labels = _labels([40, 40, 40], seed=0)
    split = make_split(labels, 0.1, 0)
    small, large = split.limit_train(10, labels, 5), split.limit_train(11, labels, 5)
    assert set(small.train.tolist()) < set(large.train.tolist())
    assert not torch.equal(small.train, split.limit_train(10, labels, 6).train)
    assert torch.equal(Split.from_json(small.to_json()).train, split.train)
    assert torch.equal(split.limit_train(None, labels, 5).train, split.train)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_fraction_outside_the_unit_interval_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="fraction"):
        make_split(torch.tensor([0, 0, 1, 1]), fraction, 0)


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 1]])
def test_too_few_images_are_refused(labels: list[int]) -> None:
    with pytest.raises(UserError, match="too few training images"):
        make_split(torch.tensor(labels, dtype=torch.int64), 0.1, 0)


def test_limit_below_one_is_refused() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(UserError, match="--max_train_samples 0"):
        make_split(labels, 0.5, 0).limit_train(0, labels, 0)
