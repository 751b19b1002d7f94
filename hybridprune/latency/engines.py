"""The engines that networks are deployed in: how each runs one layer, and a whole network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.deployment import deploy
from hybridprune.deployment.exported_engines import ENGINES, ExportedEngine
from hybridprune.deployment.layer_variants import with_products
from hybridprune.deployment.onnx import CHANNEL_BLOCK, onnx_bytes
from hybridprune.deployment.onnx_forms import nothing_is_faster
from hybridprune.engine.compiler import alone, obstacle, reason, unlimited
from hybridprune.errors import UserError
from hybridprune.latency.layer_graph import layer_graph
from hybridprune.measure.latency import Arms, Stopwatch
from hybridprune.store.provenance import hardware


class Running(NamedTuple):
    """A deployed network, ready to be timed."""

    run: Callable[[], object]
    """One batch."""
    piece: int
    """Images that it runs at a time."""


@dataclass(frozen=True)
class Engine(ABC):
    """An engine on a device."""

    device: torch.device

    @property
    @abstractmethod
    def name(self) -> str:
        """The name, as in the option."""

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Components of a separable layer are filled up to it."""

    @abstractmethod
    def input(self, x: Tensor) -> Tensor:
        """``x`` as the engine takes it."""

    @abstractmethod
    def arms(self, layer: nn.Module, x: Tensor) -> Arms:
        """The variants in which a layer of this form is deployed, on such input; the fastest counts."""

    @abstractmethod
    def running(self, network: nn.Module, images: Tensor, time: Stopwatch) -> Running:
        """A copy of ``network``, deployed for these images; ``time`` chooses between variants, if there are some."""

    @property
    @abstractmethod
    def key(self) -> dict[str, Any]:
        """All of the engine and the hardware that a time depends on, plain."""


class Eager(Engine):
    """PyTorch, as `deploy` makes a network."""

    @property
    def name(self) -> str:
        """The name, as in the option."""
        return "eager"

    @property
    def multiple(self) -> int:
        """Any number of components is as good."""
        return 1

    def input(self, x: Tensor) -> Tensor:
        """The input on the device, images in channels_last."""
        return on_device(x, self.device)

    def arms(self, layer: nn.Module, x: Tensor) -> Arms:
        """The layer with convolutions and, on images, with matrix products in the place of its 1x1 ones."""
        layer = layer.to(self.device)
        products = with_products(layer) if x.ndim == 4 else None
        variants = {"convolutions": layer} | ({} if products is None else {"products": products})
        return {name: partial(each, x) for name, each in variants.items()}

    def running(self, network: nn.Module, images: Tensor, time: Stopwatch) -> Running:
        """The network in the fastest forms that compute the same."""
        images = self.input(images)
        found = deploy(network, images, self.device, time=time, progress=False)
        return Running(partial(self.form(found.module, images), images), found.report.piece or len(images))

    def form(self, deployed: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
        """A deployed network as it runs on such images."""
        del images
        return deployed

    @property
    def key(self) -> dict[str, Any]:
        """Torch's version, and the device with its threads."""
        return {"engine": "eager", "torch": torch.__version__, "hardware": hardware(self.device)}


class Compiled(Eager):
    """PyTorch with ``torch.compile``, which compiles what `deploy` makes of a network.

    To compile a layer takes seconds, and it becomes the call of the library that it is without a compiler: layers have
    the times that PyTorch takes, and are the same tables. What a compiler gains between them, whole networks tell.
    """

    @property
    def name(self) -> str:
        """The name, as in the option."""
        return "compiled"

    def form(self, deployed: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
        """A deployed network, compiled for such images; UserError where it does not compile."""
        run = alone(deployed)
        try:
            with unlimited():
                run(images)
        except Exception as error:  # whatever the back end raises
            raise UserError(f"it does not compile: {reason(error)}") from error
        return run


@dataclass(frozen=True)
class Exported(Engine):
    """An engine on the CPU, as ``hybridprune export`` writes a network for it."""

    engine: ExportedEngine

    @property
    def name(self) -> str:
        """The name, as in the option, which is that of the package."""
        return self.engine.package

    @property
    def multiple(self) -> int:
        """Whole blocks of channels."""
        return CHANNEL_BLOCK

    def input(self, x: Tensor) -> Tensor:
        """The input on the CPU, without gaps."""
        return x.cpu().contiguous()

    def arms(self, layer: nn.Module, x: Tensor) -> Arms:
        """The layer as a model of its own."""
        return {self.name: partial(self.engine.opened(layer_graph(layer, x, self.multiple)), x.numpy())}

    def running(self, network: nn.Module, images: Tensor, time: Stopwatch) -> Running:
        """The network in the forms that it has: they were chosen by this engine's clock."""
        del time
        images = self.input(images)
        found = deploy(network, images, "cpu", time=nothing_is_faster, progress=False)
        run = self.engine.opened(onnx_bytes(found.module, images))
        return Running(partial(run, images.numpy()), len(images))

    @property
    def key(self) -> dict[str, Any]:
        """Versions of torch, whose exporter it is, and of the engine, and the processor with its threads."""
        own = {"torch": torch.__version__, self.name: metadata.version(self.name)}
        return {"engine": self.name, **own, "hardware": hardware(torch.device("cpu"))}


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device; images ``[B, C, H, W]`` in channels_last."""
    return x.to(device, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)


EXPORTED = {engine.package: engine for engine in ENGINES.values()}


def engine_of(name: str, device: torch.device) -> Engine:
    """The engine of this name; UserError, naming the flag, if what it needs is missing."""
    if name == "eager":
        return Eager(device)
    if name == "compiled":
        if (missing := obstacle(device)) is not None:
            raise UserError(f"--latency_engine compiled: {missing}; name another engine")
        return Compiled(device)
    EXPORTED[name].need(f"--latency_engine {name}")
    return Exported(device, EXPORTED[name])


@contextmanager
def threads_of(threads: int | None) -> Iterator[None]:
    """Inside, so many threads compute; None: as many as before."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
