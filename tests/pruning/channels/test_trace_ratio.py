"""Trace ratios: scatters written out class by class, subsets against all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.batch import Batch
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import Rows
from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.trace_ratio import best_ratio, best_subset, between_share, collect_scatter
from hybridprune.pruning.left_alone import ALIKE
from hybridprune.pruning.measured import unmeasured_groups


def test_the_subset_is_the_best_of_all() -> None:
    draw = torch.Generator().manual_seed(0)
    for case in range(200):
        n = 3 + case % 6
        between, within = torch.rand(2, n, generator=draw, dtype=torch.float64).pow(3)
        size = 1 + int(torch.randint(n, (1,), generator=draw))
        found = best_subset(between, within, size)
        every = [torch.tensor(subset) for subset in combinations(range(n), size)]
        best = max(every, key=lambda subset: float(between[subset].sum() / within[subset].sum()))
        assert torch.equal(found, best), case


def test_subsets_need_not_be_nested() -> None:
    between, within = torch.tensor([10.0, 0.0, 6.0, 6.0]), torch.tensor([1.0, 0.5, 1.6, 1.6])
    assert best_subset(between, within, 2).tolist() == [0, 1]
    assert best_subset(between, within, 3).tolist() == [0, 2, 3]


@pytest.mark.parametrize(("within", "best"), [([0.0, 0.0, 1.0], [0, 1]), ([1.0, 0.0, 0.0], [1, 2])])
def test_no_scatter_within_is_the_best(within: list[float], best: list[int]) -> None:
    between = torch.tensor([1.0, 2.0, 0.5])
    assert best_subset(between, torch.tensor(within), 2).tolist() == best
    assert len(best_subset(torch.zeros(3), torch.zeros(3), 2)) == 2


def test_scatters_are_those_of_the_classes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2)).double()
    labels = torch.tensor([0, 2, 2, 5, 0, 2, -100, 5, 5])
    images = (
        torch.randn(9, 3, 4, 4, dtype=torch.float64)
        + labels[:, None, None, None] * torch.tensor([0.0, 0.2, 1.0])[:, None, None]
    )
    batches = [Batch(images[:4], labels[:4]), Batch(images[4:], labels[4:])]
    found = collect_scatter(net, {"a": net[0], "b": net[3]}, batches)
    for name, features in (("a", images.mean((2, 3))), ("b", net[:3](images).detach())):
        counted = features[labels >= 0]
        between, within = torch.zeros(2, features.shape[1], dtype=torch.float64)
        for k in (0, 2, 5):
            own = features[labels == k]
            between += len(own) * (own.mean(0) - counted.mean(0)).square()
            within += (own - own.mean(0)).square().sum(0)
        torch.testing.assert_close(found[name], torch.stack([between, within]))


def test_tokens_of_an_image_are_its_positions() -> None:
    layer, tokens = nn.Linear(2, 3).double(), torch.randn(4, 5, 2, dtype=torch.float64)
    batches, rows = [Batch(tokens, torch.tensor([0, 1, 1, 0]))], {"a": Rows(0, 5)}
    found = collect_scatter(lambda x: layer(x.flatten(0, 1)), {"a": layer}, batches, rows)
    torch.testing.assert_close(found, collect_scatter(lambda x: layer(x.mean(1)), {"a": layer}, batches))


def group_and_scatter() -> tuple[ChannelGroup, Statistics]:
    """Channel 1 is best by b, channels 0 and 2 by their ratio; a second layer reads them in other places."""
    places = (
        ("p", "producer", [[0], [1], [2]]),
        ("a", "consumer", [[0], [1], [2]]),
        ("b", "consumer", [[2], [1], [0]]),
    )
    group = ChannelGroup("p", 3, False, tuple(Member(n, role, torch.tensor(i)) for n, role, i in places))  # type: ignore[arg-type]
    a, b = torch.tensor([[1.0, 5.0, 1.0], [0.1, 9.0, 0.2]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.1]])
    return group, Statistics({}, scatter={"a": a, "b": b})


def test_widths_by_shares_of_b_and_subsets_by_ratios() -> None:
    group, statistics = group_and_scatter()
    torch.testing.assert_close(between_share(group, statistics), torch.tensor([1.0, 6.0, 2.0]).double() / 9)
    assert best_ratio(group, statistics, 2).tolist() == [0, 2]
    still = Statistics(
        {}, scatter={name: each * torch.tensor([[0.0], [1.0]]) for name, each in statistics.scatter.items()}
    )
    assert unmeasured_groups([group], still, "scatter") == {"p": ALIKE}


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 3), nn.Flatten(), nn.Linear(32, 3)).eval()


def images_of(labels: Tensor) -> Tensor:
    return torch.randn(len(labels), 3, 6, 6, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]


def test_prune_keeps_the_best_subset() -> None:
    net, labels = classifier(), torch.arange(12) % 3
    loader, cut = [(images_of(labels), labels)], CutOptions(exclude=("1",))
    few = CurvatureOptions(curvature_images=12)
    pruned = hybridprune.prune(net, loader, target_flops=0.6, method="trace-ratio", cut=cut, curvature=few).module
    left = pruned.get_submodule("0").get_parameter("weight")
    between, within = collect_scatter(net, {"1": net[1]}, [Batch(*loader[0])])["1"]
    assert (
        torch.equal(left, net[0].get_parameter("weight")[best_subset(between, within, len(left))]) and 0 < len(left) < 6
    )


def test_what_has_no_class_ids_is_refused() -> None:
    labels = torch.arange(12) % 3
    with pytest.raises(UserError, match="trace-ratio: needs one class id for each image"):
        hybridprune.prune(
            classifier(), [(images_of(labels), torch.randn(12, 3))], target_flops=0.6, loss="mse", method="trace-ratio"
        )
