"""The mean scale of a group's BatchNorms by hand, and groups that follow others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup, Member, channel_groups
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.scale import bn_rank, bn_scale, mean_scale


def member(layer: str, role: str, places: list[list[int]]) -> Member:
    return Member(layer, role, torch.tensor(places))  # type: ignore[arg-type]


def norm(*scales: float) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(len(scales))
    module.weight.data = torch.tensor(scales)
    return module


def test_the_mean_is_over_all_places_of_a_channel() -> None:
    group = ChannelGroup(
        "a",
        2,
        True,
        (member("n", "norm", [[0], [1]]), member("m", "norm", [[3, 0], [1, 2]]), member("x", "norm", [[0], [1]])),
    )
    layers = {"n": norm(-3.0, 1.0), "m": norm(0.5, -4.0, 1.0, 1.0), "x": nn.BatchNorm2d(2, affine=False)}
    found = mean_scale(group, Statistics(layers, groups=[group]))
    assert found.tolist() == pytest.approx([(3 + 1 + 0.5) / 3, (1 + 4 + 1) / 3])


class Excited(nn.Module):
    """A convolution, squeeze-excite on it, and two hidden linear layers behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3), norm(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.hidden, self.more, self.classifier = nn.Linear(8, 2), nn.Linear(2, 3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()).mean((2, 3))
        return self.classifier(self.more(self.hidden(x).relu()).relu())


def test_groups_without_a_norm_follow_what_they_read() -> None:
    net = Excited()
    groups = {
        g.name: g for g in channel_groups(net, lambda m, x: m(x), torch.zeros(1, 3, 8, 8), exclude=(), coupled=True)
    }
    assert list(groups) == ["stem", "squeeze", "hidden", "more"]
    statistics = Statistics(dict(net.named_modules()), groups=list(groups.values()))
    nn.init.constant_(net.squeeze.weight, 1.0)
    net.squeeze.weight.data *= torch.tensor([3.0, 1.0, -4.0, 2.0]).view(4, 1, 1, 1)
    net.hidden.weight.data = torch.ones(2, 8) * torch.tensor([[2.0], [1.0]])
    stem = mean_scale(groups["stem"], statistics)
    assert stem.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    # The middles of the quarters, by the filters' norms.
    assert mean_scale(groups["squeeze"], statistics).tolist() == pytest.approx([0.6, 0.2, 0.8, 0.4])
    assert mean_scale(groups["hidden"], statistics).tolist() == pytest.approx([0.7, 0.3])
    # It follows what follows: thirds of two.
    assert sorted(mean_scale(groups["more"], statistics).tolist()) == pytest.approx([0.3, 0.7, 0.7])
    # One threshold takes the same share of both.
    for threshold, share in ((0.25, 0.25), (0.45, 0.5), (0.65, 0.75)):
        assert float((mean_scale(groups["squeeze"], statistics) < threshold).double().mean()) == share
        assert abs(float((stem < threshold).double().mean()) - share) <= 1 / 8


def test_scores_by_scale_rank_groups_without_a_norm_too() -> None:
    net = Excited()
    groups = channel_groups(net, lambda m, x: m(x), torch.zeros(1, 3, 8, 8), exclude=(), coupled=True)
    statistics = Statistics(dict(net.named_modules()), groups=groups)
    for group in groups:  # one norm: the sum over the norms is their mean
        assert torch.equal(bn_scale(group, statistics), mean_scale(group, statistics))
    nn.init.constant_(net.squeeze.weight, 1.0)
    net.squeeze.weight.data *= torch.tensor([3.0, 1.0, -4.0, 2.0]).view(4, 1, 1, 1)
    assert bn_rank(groups[1], statistics).tolist() == [0.75, 0.25, 1.0, 0.5]


def test_the_scale_of_a_group_is_the_sum_of_its_norms() -> None:
    every = [[0], [1]]
    group = ChannelGroup("a", 2, True, (member("x", "norm", every), member("y", "norm", every)))
    statistics = Statistics({"x": norm(1.0, -2.0), "y": norm(0.5, 0.25)}, groups=[group])
    assert bn_scale(group, statistics).tolist() == [1.5, 2.25]


def test_what_follows_nothing_is_refused() -> None:
    every = [[0], [1]]
    loop = ChannelGroup("a", 2, True, (member("a", "producer", every), member("a", "consumer", every)))
    with pytest.raises(UserError, match=r"of a, .*--exclude"):
        mean_scale(loop, Statistics({"a": nn.Linear(2, 2)}, groups=[loop]))
    with pytest.raises(UserError, match=r"of a, .*--exclude"):
        mean_scale(loop, Statistics({"a": nn.Linear(2, 2)}))
