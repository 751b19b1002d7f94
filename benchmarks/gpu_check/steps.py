"""One training step in each format, loss and gradients against those of a CPU in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.device_cases import Values
from benchmarks.device_cases.case import network, numbers, random_images, random_labels
from benchmarks.gpu_check.check import CPU, Check, Found, Setting, compared, other_kernels
from hybridprune.engine.compiler import compiled
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import Precision, tf32

IMAGES = 32


@dataclass(frozen=True)
class Format:
    """The number and memory format of a step, and whether it is compiled."""

    precision: str = "fp32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    tolerance: float = 5e-3


FORMATS: Mapping[str, Format] = {
    "fp32": Format(),
    "fp32, channels_last": Format(channels_last=True),
    "fp32, compiled": Format(channels_last=True, compile=True),
    "TF32": Format(tf32=True, channels_last=True, tolerance=5e-2),
    "bf16, channels_last": Format("bf16", channels_last=True, tolerance=2e-1),
    "bf16, compiled": Format("bf16", channels_last=True, compile=True, tolerance=2e-1),
    "fp16 with a scaler, channels_last": Format("fp16", channels_last=True, tolerance=1e-1),
    "fp16 with a scaler, contiguous": Format("fp16", tolerance=1e-1),
}


def step(device: torch.device, format: Format, width: int) -> Values:
    """Loss and gradients of a gated ResNet-14 in eval mode (rounding grows in training mode) on a fixed route."""
    layout = torch.channels_last if format.channels_last else torch.contiguous_format
    net = network(NetworkSpec("resnet", 14, width, 5), device).to(memory_format=layout)  # type: ignore[call-overload]
    images = random_images(IMAGES, 16).to(device, memory_format=layout)
    route = (torch.arange(IMAGES * net.num_gates).view(IMAGES, -1) % 3 > 0).float().to(device)
    # A scale that training comes to, after it has begun with one that overflows.
    scaler = torch.amp.GradScaler(device.type, init_scale=4096.0, enabled=format.precision == "fp16")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with tf32(format.tf32):
        run = Precision.of(format.precision, device)(compiled(net, device) if format.compile else net)
        routed = run(images, route)
        cross_entropy = F.cross_entropy(routed.logits.float(), random_labels(IMAGES).to(device))
        loss = cross_entropy + routed.gate_logits.sigmoid().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
    # As one vector: a rectifier on its edge may turn a whole layer's small gradient.
    gradient = torch.cat([p.grad.float().flatten() for p in net.parameters() if p.grad is not None])
    return numbers(loss=loss, logits=routed.logits, gates=routed.gate_logits, gradient=gradient)


def _run(setting: Setting, format: Format) -> Found:
    width = 4 if setting.quick else 16
    with other_kernels(setting.device):
        there = step(setting.device, format, width)
    return compared(there, step(CPU, Format(), width), format.tolerance)


CHECKS: Mapping[str, Check] = {
    f"step: {name}": Check(partial(_run, format=format), seconds=150 if format.compile else 60)
    for name, format in FORMATS.items()
}
