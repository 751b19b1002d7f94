"""The networks that the bench times, in several forms, in turns on the same images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.commands.bench_rows import INT8, rows
from hybridprune.commands.finished_run import FinishedRun
from hybridprune.deployment import deploy
from hybridprune.deployment.cascade import RoutedModule, decides
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.deployment.onnx import onnx_bytes
from hybridprune.engine.compiler import alone, unlimited
from hybridprune.engine.modes import always_on
from hybridprune.measure.cost import count
from hybridprune.measure.latency import Latency, device_clock, interleaved
from hybridprune.measure.memory import activation_bytes, weight_bytes
from hybridprune.models.routed import RoutedNetwork
from hybridprune.stages.console import say
from hybridprune.store.provenance import hardware, versions

DENSE_DEPLOYED = "dense deployed"
IMAGES = 256
"""Test images that the calls go through in turn: routes differ, and so does what one image takes."""
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 64

Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Candidate:
    """A network that is timed."""

    name: str
    """dense, a stage, deployed or dense deployed"""
    module: nn.Module
    macs: float
    """Expected of one of the timed images, gates counted where they are asked."""
    promised_macs: float
    """Of the network that was deployed: recomposed layers and blended blocks have more, and are no slower."""


@dataclass(frozen=True)
class Bench:
    """A bench of one run: its networks, their forms, and how long they are timed."""

    run: FinishedRun
    forms: tuple[str, ...]
    int8: bool
    rounds: int
    threads: int

    def table(self, batch: int) -> dict[str, Any]:
        """All networks in all forms at one batch size."""
        images, device = self._images(batch), self.run.device
        candidates = self._candidates(images)
        arms: dict[str, Call] = {}
        more: dict[str, dict[str, Any]] = {}
        deployed = candidates[-1].module

        @cache
        def exported(single: bool) -> bytes:
            return onnx_bytes(deployed, images[0], single=single)

        for candidate in candidates:
            for form in self.forms:
                if form in ENGINES and candidate.module is deployed:
                    call = self._opened(form, exported(batch == 1 and decides(deployed)))
                else:
                    call = self._call(candidate, form, images[0])
                if call is not None:
                    arms[f"{candidate.name}/{form}"] = call
        for engine in quantised_in(self.forms) if self.int8 else ():
            own = self._quantised(engine, exported(False))
            for name, (call, facts) in (("dense", self._dense_int8[engine]), ("deployed", own)):
                arm = f"{name}/{INT8[engine]}"
                arms[arm], more[arm] = call, facts
        for candidate in candidates if "eager" in self.forms else ():
            more[f"{candidate.name}/eager"] = memory(candidate.module, images)
        found = self._times(arms, images)
        macs = {candidate.name: (candidate.macs, candidate.promised_macs) for candidate in candidates}
        return {
            "batch": batch,
            "device": str(device),
            "threads": self.threads,
            "rows": rows(found, macs, batch, more),
            "versions": versions(),
            "hardware": hardware(device),
        }

    def accuracies(self) -> tuple[float, float]:
        """The accuracy of the dense ancestor, and of the run as deployed, on the test images (from result.json)."""
        *_, eldest = self.run.run.lineage()
        routed = self._lineage[-1][2]
        dense = eldest.result("test.always_on.accuracy", float, 0, 1)
        return dense, self.run.run.result(f"test.{'routed' if routed else 'always_on'}.accuracy", float, 0, 1)

    @cached_property
    def _lineage(self) -> list[tuple[str, RoutedNetwork, bool]]:
        return lineage(self.run)

    @cached_property
    def _static_onnx(self) -> dict[str, bytes]:
        """The networks without routing by name, for any batch size."""
        image = next(iter(self.run.batches("test"))).images[:1]
        return {name: onnx_bytes(always_on(net), image) for name, net, routed in self._lineage if not routed}

    @cached_property
    def _dense_int8(self) -> dict[str, tuple[Call, dict[str, Any]]]:
        """By engine, for any batch size."""
        return {engine: self._quantised(engine, self._static_onnx["dense"]) for engine in quantised_in(self.forms)}

    @torch.inference_mode()
    def _times(self, arms: Mapping[str, Call], images: Sequence[Tensor]) -> Mapping[str, Latency]:
        def repeated(call: Call) -> Callable[[], object]:
            turn: Iterator[Tensor] = itertools.cycle(images)
            return lambda: call(next(turn))

        clock = device_clock(self.run.device)
        turns = {arm: repeated(call) for arm, call in arms.items()}
        return interleaved(turns, clock, self.rounds, warm_up=2, at_least=0.02)

    def _candidates(self, images: Sequence[Tensor]) -> list[Candidate]:
        """The dense ancestor first, the deployed network last."""
        found = []
        own: tuple[nn.Module, list[float] | None] = self.run.net, None
        for name, net, routed in self._lineage:
            cost = count(net, self.run.spec.input_size)
            rates = self._rates(net, images) if routed else None
            macs = cost.backbone_macs if rates is None else cost.expected_macs(rates)
            found.append(Candidate(name, _Executed(net) if routed else always_on(net), macs, macs))
            own = (net if routed else always_on(net)), rates
        dense, last = found[0], found[-1]
        for name, (module, rates), of in ((DENSE_DEPLOYED, (dense.module, None), dense), ("deployed", own, last)):
            deployed = deploy(module, images[0], self.run.device, rates=rates)
            found.append(Candidate(name, deployed.module, deployed.report.macs_after, of.macs))
        return found

    @torch.inference_mode()
    def _rates(self, net: RoutedNetwork, images: Sequence[Tensor]) -> list[float]:
        """Execution rates on the images that are timed."""
        return torch.cat([net(each, mode="executed").decisions for each in images]).mean(0).tolist()

    def _call(self, candidate: Candidate, form: str, images: Tensor) -> Call | None:
        """How to run a candidate in a form that does not depend on the batch size; None where it has none."""
        if form == "eager":
            return candidate.module
        if isinstance(candidate.module, _Executed) or candidate.name == DENSE_DEPLOYED:
            return None  # the one is deployed before it is exported, the other is the dense one to an exporter
        if form in ENGINES:
            return self._opened(form, self._static_onnx[candidate.name])
        compiled = alone(candidate.module)
        try:
            with torch.inference_mode(), unlimited():
                compiled(images)
        except Exception as error:  # the compiler raises what its backends raise
            say(f"--forms compiled: {candidate.name} is left out, torch.compile failed ({str(error).splitlines()[0]})")
            return None
        return compiled

    def _opened(self, engine: str, *files: bytes) -> Call:
        """An exported network in its engine, on images ``[B, 3, H, W]``; gives its outputs."""
        run = ENGINES[engine].opened(*files, threads=self.threads)
        return lambda images: run(images.contiguous().cpu().numpy())

    def _quantised(self, engine: str, content: bytes) -> tuple[Call, dict[str, Any]]:
        """An ONNX model in int8 for an engine, with the size of its files and its accuracy on all test images."""
        run = self.run
        calibration = dataclasses.replace(run, batch_size=CALIBRATION_BATCH).training_sample(CALIBRATION_IMAGES)
        files = ENGINES[engine].quantised(content, (each.images for each in calibration))
        call = self._opened(engine, *files)
        correct = sum(
            int((call(each.images)[0].argmax(1) == each.labels.cpu().numpy()).sum()) for each in run.batches("test")
        )
        return call, {"weight_bytes": sum(map(len, files)), "accuracy": correct / len(run.dataset.test)}

    def _images(self, batch: int) -> list[Tensor]:
        """Test images in batches of this size, about `IMAGES` of them."""
        number = max(1, IMAGES // batch)
        pool = torch.cat([each.images for each in itertools.islice(self.run.batches("test"), number * batch)])
        indices = torch.arange(number * batch, device=pool.device) % len(pool)
        return [pool[part].to(memory_format=torch.channels_last) for part in indices.split(batch)]


class _Executed(nn.Module):
    """A routed network as it is run in inference, giving the logits alone."""

    def __init__(self, net: RoutedNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images, mode="executed").logits


def memory(module: nn.Module, images: Sequence[Tensor]) -> dict[str, int]:
    """Bytes of the weights, and of the tensors alive at once in the forward pass of the batch that needs the most."""
    differ = isinstance(module, _Executed | RoutedModule)  # else one batch is like the other
    activations = max(activation_bytes(module, each) for each in (images if differ else images[:1]))
    return {"weight_bytes": weight_bytes(module), "activation_bytes": activations}


def quantised_in(forms: Sequence[str]) -> tuple[str, ...]:
    """The engines that int8 is timed in beside these forms: those among them, else ONNX Runtime."""
    return tuple(form for form in forms if form in ENGINES) or ("onnx",)


def lineage(run: FinishedRun) -> list[tuple[str, RoutedNetwork, bool]]:
    """The run and its ancestors, eldest first: name, network, and whether its gates decide.

    The eldest is taken as dense, every block executed; if it is the run itself, it stands there once more as routed.
    A cascade's ancestors are those of its dearest member. UserError if one is gone.
    """
    found: list[tuple[str, RoutedNetwork, bool]] = []
    folders = list(run.run.lineage())
    for folder in folders:
        stage, eldest = folder.read_json("result.json")["stage"], folder is folders[-1]
        net = run.net if folder is run.run else folder.load_gated()[0].to(run.device).eval()
        if stage == "rl" or (eldest and folder is run.run and net.num_gates):
            found.append((stage, net, True))
        if eldest:
            found.append(("dense", net, False))
        elif stage != "rl":
            found.append((stage, net, False))
    return found[::-1]
