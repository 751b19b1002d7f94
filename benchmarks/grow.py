"""Deepen stage 1's checkpoint: a ResNet of depth 6m + 2 that computes what the given one of 6n + 2 < 6m + 2 computes.

    python -m benchmarks.grow --depth 56 --output grown56.safetensors

New blocks stand between the old ones of their stage. The last BatchNorm of a new block is zero, so that the block is
the identity until it is trained (Goyal et al. 2017, section 5.1, start their residual blocks so). The gate that reads
it is that which reads the block before it, if there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.static_arms import CHECKPOINT, DENSE
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.weights import load_weights, save_weights

STAGES = 3


def sources(old: int, new: int) -> list[tuple[int, bool]]:
    """The ``old`` block of a stage from which each of its ``new`` ones comes, and whether it is that one."""
    assert 0 < old <= new, (old, new)
    which = [index * old // new for index in range(new)]
    return [(source, source not in which[:index]) for index, source in enumerate(which)]


@torch.no_grad()
def deepen(net: GatedNetwork, into: GatedNetwork) -> None:
    """Give ``into``, the deeper one, the function of ``net``; both are gated CIFAR ResNets with the recurrent gate."""
    for name, module in net.backbone.named_children():
        if name != "blocks":
            getattr(into.backbone, name).load_state_dict(module.state_dict())
    for name, module in net.gate.named_children():
        if name != "embeddings":
            getattr(into.gate, name).load_state_dict(module.state_dict())
    old, new = net.num_blocks // STAGES, into.num_blocks // STAGES
    for stage in range(STAGES):
        for index, (source, same) in enumerate(sources(old, new)):
            block = into.backbone.blocks[stage * new + index]
            if same:
                block.load_state_dict(net.backbone.blocks[stage * old + source].state_dict())
            else:
                torch.nn.init.zeros_(block.bn2.weight)
            if stage * old + source < net.num_gates:
                gate = net.gate.embeddings[stage * old + source]
                into.gate.embeddings[stage * new + index].load_state_dict(gate.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=56, help="of the grown ResNet")
    parser.add_argument("--output", type=Path, required=True, help="file of its weights")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    net, grown = DENSE.build(), NetworkSpec("resnet", arguments.depth, DENSE.width, DENSE.classes).build()
    load_weights(net, CHECKPOINT)
    deepen(net, grown)
    save_weights(grown, arguments.output)


if __name__ == "__main__":
    main()
