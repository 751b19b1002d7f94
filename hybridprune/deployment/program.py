"""The deployed network as a ``torch.export`` program, which runs without this package."""

from __future__ import annotations

import copy
import io

import torch
from torch import Tensor, nn

from hybridprune.deployment.batch_splitting import in_one
from hybridprune.deployment.cascade import DeployedCascade, RoutedModule
from hybridprune.deployment.fold import spell_out_norms
from hybridprune.deployment.network import Action, DeployedNetwork
from hybridprune.deployment.pointwise import spell_out_products

INPUT = "images"
DECISIONS = "decisions"
METADATA = "hybridprune.json"
"""The file in a saved program that holds classes, input size and normalisation."""


class Exportable(nn.Module):
    """A copy of a deployed network in operations that exporters know; a gated one also gives the decisions taken.

    ``[B, 3, H, W]`` images to logits ``[B, classes]``, and decisions ``[B, N]`` in {0, 1} where there are gates.
    """

    def __init__(self, module: nn.Module, single: bool) -> None:
        """``single``: gated blocks, or members, become branches, for one image; otherwise any number is gathered."""
        super().__init__()
        # In one memory format: torch.export cannot save another without a warning for each weight.
        self.module = copy.deepcopy(in_one(module)).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        spell_out_products(self.module)
        spell_out_norms(self.module)  # exporters cannot normalise a number of images that depends on the data
        if isinstance(self.module, DeployedNetwork):
            action: Action = "branch" if single else "select"
            for i in range(len(self.module.steps)):
                step = self.module.step(i)
                step.action = action if step.decides else step.action
        elif isinstance(self.module, DeployedCascade):
            self.module.partition = "branch" if single and self.module.branches else "select"

    def forward(self, images: Tensor, decisions: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if not isinstance(self.module, RoutedModule):
            return self.module(images)
        routed = self.module.route(images, decisions)
        return routed.logits, routed.decisions


@torch.no_grad()
def export_program(
    module: nn.Module, example_input: Tensor, *, single: bool = False, forced: bool = False
) -> torch.export.ExportedProgram:
    """The program of a deployed network, for any batch size or for a ``single`` image, on the CPU: from there a program
    can be moved (`torch.export.passes.move_to_device_pass`), but loads where there is no GPU, too.

    ``example_input [B, 3, H, W]`` says which images will come, but for their number. ``forced``: the program takes the
    decisions ``[B, N]`` as a second input and obeys them (for measuring).
    """
    # One image would be taken for a constant.
    image = example_input[:1].cpu()
    images = image if single else image.expand(2, -1, -1, -1).clone()
    arguments = [images.contiguous()]
    if forced:
        assert isinstance(module, RoutedModule)
        arguments.append(torch.ones(len(images), module.num_gates))
    batch = {0: torch.export.Dim("batch")}
    shapes = {INPUT: batch, DECISIONS: batch} if forced else {INPUT: batch}
    return torch.export.export(
        Exportable(module, single).cpu().eval(),
        tuple(arguments),
        dynamic_shapes=None if single else shapes,
    )


def program_bytes(program: torch.export.ExportedProgram, metadata: str) -> bytes:
    """The content of a ``.pt2`` file, with ``metadata`` (JSON) in it."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: metadata})
    return file.getvalue()
