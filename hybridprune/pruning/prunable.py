"""The network that is to be cut, seen as any ``nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Protocol

from torch import nn

from hybridprune.batch import Batch
from hybridprune.curvature.likelihood import Likelihood
from hybridprune.pruning.budget.space import Cost

Run = Callable[[nn.Module, Any], object]
"""``run(model, images)`` passes a batch through a network of this kind, all of its blocks executed."""


class PrunableNetwork(Protocol):
    """A network, how it is run, and images to run it on."""

    @property
    def model(self) -> nn.Module:
        """The network itself, which is cut in place."""
        ...

    @property
    def example(self) -> Any:
        """One image ``[1, ...]``, or what else ``run`` takes of one."""
        ...

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of names of layers that are left alone."""
        ...

    @property
    def channels(self) -> Mapping[str, int]:
        """Outputs that each layer had before anything was cut, by name; a layer that is not in it has all of them."""
        ...

    @property
    def seed(self) -> int:
        """The seed of what is drawn at random: sampled targets, scores, new weights."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes take the batches that are measured in turn, and not each all of them."""
        ...

    @property
    def measurements(self) -> MutableMapping[str, Any] | None:
        """Measurements of these very weights by these options, by kind, for other plans; None: nothing is kept."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the outputs: their loss, and how targets are sampled."""
        ...

    @property
    def cost(self) -> Cost:
        """The cost, as by ``measure``, of the network as it is now."""
        ...

    def logits(self, images: Any) -> Any:
        """Images to outputs as in use: a gated network routes them by its gates."""
        ...

    def run(self, model: nn.Module, images: Any) -> object:
        """A batch through a network of this kind, all of its blocks executed."""
        ...

    def sample(self, images: int, purpose: str) -> Iterable[Batch]:
        """Batches of about so many random training images, the same for a purpose."""
        ...

    def judge(self, model: nn.Module) -> float:
        """The worth of a network of this kind on images that are kept for such choices: the higher the better.

        BatchNorm's statistics of ``model``, in place, become those of some training images before.
        """
        ...

    def measure(self, model: nn.Module) -> Cost:
        """The cost of a network of this kind, as far as it counts: of a gated network its backbone's."""
        ...

    def counts(self, name: str) -> bool:
        """Whether a layer of this name is a part of that."""
        ...
