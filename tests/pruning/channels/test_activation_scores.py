"""Scores from what passes through the network: each against its formula, written out image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.batch import Batch
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import Rows
from hybridprune.curvature.likelihood import UserLoss
from hybridprune.errors import RunFailed
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.saliency import collect_saliency
from hybridprune.pruning.channels.scores.variance import collect_variance
from hybridprune.pruning.left_alone import CONSTANT, NO_GRADIENT, UNREAD
from hybridprune.pruning.measured import unmeasured_groups
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods import find


class Net(nn.Module):
    """Convolutions of several geometries with in-place ReLUs, one of them run twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding="same")
        self.strided = nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=(2, 1), padding_mode="reflect")
        self.idle, self.head = nn.Conv2d(3, 2, 1), nn.Linear(6, 3)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.relu(self.twice(F.relu(self.twice(x), inplace=True)), inplace=True)
        return self.head(F.relu(self.strided(x), inplace=True).mean((2, 3)))


PAIRS = [(torch.randn(n, 3, 6, 5, dtype=torch.float64), torch.randint(3, (n,))) for n in (4, 1, 3)]
BATCHES = [Batch(*pair) for pair in PAIRS]


def inputs_of(net: nn.Module, layers: dict[str, nn.Module]) -> dict[str, list[Tensor]]:
    """All inputs that each layer has in one pass over all images."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keeper(name: str) -> Any:
        return lambda _, args: seen[name].append(args[0].detach().clone())

    handles = [layer.register_forward_pre_hook(keeper(name)) for name, layer in layers.items()]
    net(torch.cat([images for images, _ in PAIRS]))
    for handle in handles:
        handle.remove()
    return seen


def test_shares_of_variance_are_those_of_each_input_alone() -> None:
    net, names = Net(), ("stem", "twice", "strided", "idle", "head")
    found = collect_variance(net, {name: net.get_submodule(name) for name in names}, BATCHES)
    assert torch.equal(found.pop("idle"), torch.zeros(3, dtype=torch.float64))
    layers = {name: net.get_submodule(name) for name in found}
    seen = inputs_of(net, layers)

    def variance(outputs: list[Tensor], axis: int) -> Tensor:
        columns = [y.movedim(axis, 0).flatten(1) for y in outputs]
        return torch.cat(columns, 1).var(1, correction=0).sum()

    for name, layer in layers.items():
        axis, xs = (-1 if name == "head" else 1), seen[name]
        assert layer.bias is not None
        for i, share in enumerate(found[name]):
            only = [torch.zeros_like(x).index_copy(axis, torch.tensor([i]), x.narrow(axis, i, 1)) for x in xs]
            expected = variance([layer(x) for x in only], axis) / variance([layer(x) for x in xs], axis)
            torch.testing.assert_close(share, expected.detach())


def test_a_channel_counts_for_all_that_read_it() -> None:
    places = (("p", "producer", [[0], [1]]), ("a", "consumer", [[0, 3], [1, 2]]), ("b", "consumer", [[1], [0]]))
    members = tuple(Member(name, role, torch.tensor(index)) for name, role, index in places)  # type: ignore[arg-type]
    group = ChannelGroup("p", 2, False, members)
    shares = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([0.5, 0.25])}
    method = find("global-variance")
    assert isinstance(method, ChannelMethod)
    torch.testing.assert_close(method.score(group, Statistics({}, variance=shares)).float(), torch.tensor([0.75, 1.0]))
    still = {name: torch.zeros_like(each) for name, each in shares.items()}
    assert unmeasured_groups([group], Statistics({}, variance=still), "variance") == {"p": CONSTANT}
    assert unmeasured_groups([group], Statistics({}, variance={**still, "b": shares["b"]}), "variance") == {}
    unread = ChannelGroup("p", 2, False, group.members[:1])
    assert unmeasured_groups([unread], Statistics({}), "variance") == {"p": UNREAD}


def grad_of(y: Tensor) -> Tensor:
    assert y.grad is not None
    return y.grad


def squared(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss of one's own, a mean over images."""
    return (output - batch[1][:, None]).square().sum(1).mean()


def test_saliency_is_the_sum_over_positions_of_each_image() -> None:
    net, names = Net(), ("norm", "twice", "strided", "head", "idle")
    batches = [Batch(images, (images, labels)) for images, labels in PAIRS]
    found = collect_saliency(net, {name: net.get_submodule(name) for name in names}, batches, UserLoss(squared))
    assert torch.equal(found.pop("idle"), torch.zeros(2, dtype=torch.float64))
    for name in found:
        outputs: list[Tensor] = []

        def keep(_: nn.Module, __: object, y: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            outputs.append(y)
            y.retain_grad()
            return y.clone()  # a ReLU overwrites what it gets

        handle, total = net.get_submodule(name).register_forward_hook(keep), 0.0
        for images, labels in PAIRS:
            for n in range(len(images)):
                outputs.clear()
                squared(net(images[n : n + 1]), (images, labels[n : n + 1])).backward()
                products = [(y.detach() * grad_of(y)).view(y.shape[1], -1).sum(1) for y in outputs]
                total = total + torch.stack(products).sum(0).abs()
        handle.remove()
        torch.testing.assert_close(found[name], total / 8)


def test_rows_of_one_image_add_up() -> None:
    """Two tokens of an image, folded into the batch: as if they were its positions."""
    layer, weight = nn.Linear(2, 3, bias=False).double(), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    images, size = torch.randn(4, 2, 2, dtype=torch.float64), 4
    loss = UserLoss(lambda output, batch: (output.view(size, 2, 3).sum(1) @ weight).mean())
    batches = [Batch(images, images)]
    found = collect_saliency(lambda x: layer(x.flatten(0, 1)), {"a": layer}, batches, loss, {"a": Rows(0, 2)})
    expected = (layer(images).sum(1) * weight).abs().mean(0).detach()
    torch.testing.assert_close(found["a"], expected)


def test_what_cannot_be_measured_is_refused() -> None:
    net = Net()
    nan = [Batch(torch.full((1, 3, 6, 5), torch.nan, dtype=torch.float64), torch.tensor([0]))]
    with pytest.raises(RunFailed, match="saliency: the loss of batch 1"):
        collect_saliency(net, {"head": net.head}, nan)
    for collect in (collect_saliency, collect_variance):
        with pytest.raises(ValueError, match="at least one batch"):
            collect(net, {"head": net.head}, [])
    group = ChannelGroup("head", 3, False, (Member("head", "producer", torch.arange(3)[:, None]),))
    nothing = Statistics({}, saliency={"head": torch.zeros(3)})
    assert unmeasured_groups([group], nothing, "saliency") == {"head": NO_GRADIENT}


@pytest.mark.parametrize("method", ["saliency", "global-variance"])
def test_a_dead_channel_goes_first(method: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(3)]
    net = nn.Sequential(*layers).eval()
    net(loader := torch.randn(8, 3, 6, 6))
    with torch.no_grad():
        for parameter in net[1].parameters():
            parameter[2] = 0.0
    options = {"cut": CutOptions(exclude=("3",)), "curvature": CurvatureOptions(curvature_images=8)}
    pruned = hybridprune.prune(net, [(loader, torch.arange(8) % 3)], target_flops=0.8, method=method, **options).module
    weight = pruned.get_submodule("1").get_parameter("weight")
    assert len(weight) == 3 and bool((weight != 0).all())
