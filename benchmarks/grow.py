"""A deeper start from the checkpoint: the same function with more blocks, to be trained on.

    python -m benchmarks.grow --depth 56 GROWN.safetensors
    python main_sp.py --depth 56 --width 16 --weights GROWN.safetensors ...

Every new block is a copy of the one before it whose last BatchNorm is zero, so that it adds nothing at first
(zero-gamma initialisation, Goyal et al. 2017, section 5.1; function-preserving deepening, Chen et al. 2016). Few epochs
then reach what the deeper network would otherwise need a full training for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.static_arms import CHECKPOINT
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.run_folder import load_weights, save_weights


@torch.no_grad()
def grow(source: GatedNetwork, target: GatedNetwork) -> None:
    """Write the function of ``source``, a ResNet, into a deeper one of the same widths; the gates stay as they are."""
    old, new = source.num_blocks // 3, target.num_blocks // 3
    assert new > old
    kept = source.state_dict()
    for name in target.state_dict():
        if name.startswith("backbone.") and not name.startswith("backbone.blocks."):
            target.state_dict()[name].copy_(kept[name])
    for stage in range(3):
        # Where each new block comes from: the old ones keep their order, copies follow their originals.
        origin = [position * old // new for position in range(new)]
        for position, source_position in enumerate(origin):
            block = target.backbone.blocks[stage * new + position]
            is_copy = position > 0 and origin[position - 1] == source_position
            original = source.backbone.blocks[stage * old + source_position]
            # A copy of a first block would need its projection; the block after it has none.
            if is_copy and original.projection is not None:
                original = source.backbone.blocks[stage * old + source_position + 1]
            block.load_state_dict(original.state_dict())
            if is_copy:
                block.bn2.weight.zero_()
                block.bn2.bias.zero_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=56, help="6n + 2, above 32")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    source, target = (NetworkSpec("resnet", depth, 16, 100).build() for depth in (32, arguments.depth))
    load_weights(source, CHECKPOINT)
    grow(source, target)
    save_weights(target, arguments.out)


if __name__ == "__main__":
    main()
