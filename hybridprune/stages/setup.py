"""The setup of a stage: device, images, the network and the run that it comes from."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch

from hybridprune.ambient import seeded
from hybridprune.config import Invocation, NetworkOptions, PruneConfig, RlConfig, SpConfig
from hybridprune.data import Dataset
from hybridprune.engine.device import device_of
from hybridprune.engine.run_data import load_images
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost, count, somewhere
from hybridprune.models.architectures import allow, architecture
from hybridprune.models.own_network import check_passes
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import is_emulated
from hybridprune.processes import local_device
from hybridprune.stages.console import say
from hybridprune.stages.images import RunImages
from hybridprune.stages.parent import Parent
from hybridprune.stages.weights import start_from
from hybridprune.store.run_folder import RunSpec
from hybridprune.store.seeds import stream_seed

C = TypeVar("C", SpConfig, PruneConfig, RlConfig)
D = TypeVar("D", PruneConfig, RlConfig)
N = TypeVar("N", bound=RoutedNetwork)


@dataclass(frozen=True)
class StageSetup(Generic[C]):
    """A stage before it starts: what was asked for, the images, and the network as it is to be changed."""

    invocation: Invocation[C]
    spec: RunSpec
    images: RunImages
    net: RoutedNetwork
    """On this process's device."""
    cost: NetworkCost
    """Of the network at the start."""
    parent: Parent | None

    @property
    def config(self) -> C:
        """The resolved configuration."""
        return self.invocation.config

    @property
    def gated(self) -> GatedNetwork:
        """The network of a stage that works on gated blocks."""
        assert isinstance(self.net, GatedNetwork), type(self.net)
        return self.net

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.images.device

    @property
    def dense(self) -> Mapping[str, int]:
        """``params`` and ``macs`` of the unpruned backbone, which shares refer to."""
        if self.parent is not None:
            return dict(self.parent.result["dense"])
        return {"params": self.cost.backbone_params, "macs": self.cost.backbone_macs}

    @staticmethod
    def fresh(invocation: Invocation[SpConfig]) -> StageSetup[SpConfig]:
        """Stage 1: a new network, of random weights or of those that ``weights`` names.

        Raises UserError for a device, images, a network or weights that are not there.
        """
        config = invocation.config
        allow(config.network.network)
        device = device_for(config)
        dataset = load_images(config.data)
        spec = describe("sp", dataset, config.data.resize, config.network)
        images = RunImages.of(dataset, None, config, device)
        with seeded(stream_seed(config.run.seed, "initialisation")):
            net = spec.gated.build()
        if architecture(spec.network.network).foreign:
            somewhere(net, partial(_try, spec=spec))
        if config.stage.weights is not None:
            start_from(net, spec.gated, Path(config.stage.weights))
        return placed(invocation, spec, images, net, None)

    @staticmethod
    def descendant(invocation: Invocation[D], stage: str, of: str, also: tuple[str, ...]) -> StageSetup[D]:
        """The network of a finished run of the stage ``of``; a named one may be of the stages ``also``.

        Raises UserError for a device, images or a parent that is not there, and for images that are not the parent's.
        """
        config = invocation.config
        allow(config.network.network)
        device = device_for(config)
        dataset = load_images(config.data)
        wanted = describe(stage, dataset, config.data.resize, config.network)
        parent = Parent.load(config, wanted, of, also)
        parent.check_subtask(config.data.classes)
        spec = dataclasses.replace(wanted, network=parent.spec.network, mean=parent.spec.mean, std=parent.spec.std)
        images = RunImages.of(dataset, parent.split(), config, device)
        return placed(invocation, spec, images, parent.net, parent)


def placed(
    invocation: Invocation[C], spec: RunSpec, images: RunImages, net: RoutedNetwork, parent: Parent | None
) -> StageSetup[C]:
    """The setup with its network on the device of the images."""
    net = to_device(net, images.device, images.channels_last)
    return StageSetup(invocation, spec, images, net, count(net, spec.input_size), parent)


def _try(net: GatedNetwork, spec: RunSpec) -> None:
    """UserError if a network of a user's own does not do what a backbone does."""
    image = torch.zeros(1, 3, spec.input_size, spec.input_size, device=next(net.parameters()).device)
    check_passes(net.backbone, image, spec.network.classes, f"--network {spec.network.network}")


def device_for(config: SpConfig | PruneConfig | RlConfig) -> torch.device:
    """The device of this process of a stage; UserError if it is not there, or cannot do what is asked of it."""
    device = local_device(device_of(config.run.device))
    if config.optim.sync_batchnorm and device.type != "cuda":
        raise UserError(f"--sync_batchnorm: works on GPUs only, this run is on {device.type}; leave it out")
    precision = config.optim.precision
    if is_emulated(precision, device):
        say(f"--precision {precision}: this processor only emulates it; fp32 takes less time here")
    return device


def describe(stage: str, dataset: Dataset, size: int, network: NetworkOptions) -> RunSpec:
    """The specification of a new run of ``stage`` on this data, with the unpruned network.

    Raises UserError if the options name no network.
    """
    return RunSpec(
        stage=stage,
        run_id=uuid.uuid4().hex,
        network=NetworkSpec.of(network, len(dataset.classes)),
        class_names=dataset.classes,
        input_size=size,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        centre_crop=dataset.centre_crop,
    )


def to_device(net: N, device: torch.device, channels_last: bool) -> N:
    """Move ``net`` to the device, in the memory format of its images."""
    format = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(device=device, memory_format=format)  # type: ignore[call-overload]


def unpruned(network: NetworkSpec) -> GatedNetwork:
    """The architecture before any edit, on the meta device."""
    with torch.device("meta"):
        return dataclasses.replace(network, edits=()).build()
