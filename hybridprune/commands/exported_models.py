"""A deployed network as models for several engines, each checked in its own before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from hybridprune.commands.finished_run import FinishedRun
from hybridprune.data import EvalBatches
from hybridprune.deployment import Deployed
from hybridprune.deployment.agreement import Run, compare
from hybridprune.deployment.cascade import decides
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.deployment.onnx import onnx_bytes
from hybridprune.deployment.onnx_forms import OnnxModel, fastest_model, onnx_models
from hybridprune.deployment.program import export_program, program_bytes
from hybridprune.deployment.program_engines import PROGRAM_ENGINES
from hybridprune.errors import RunFailed, UserError

T = TypeVar("T")
CHECKED_IMAGES = 256
SUFFIXES = {
    "program": (".pt2",),
    **{flag: each.suffixes for flag, each in ENGINES.items()},
    **{flag: (each.suffix,) for flag, each in PROGRAM_ENGINES.items()},
}
"""Of the files of each model that a flag asks for; the first one is what a user names."""


def need(flag: str) -> None:
    """UserError if a package for this flag's models is missing."""
    engine = ENGINES.get(flag) or PROGRAM_ENGINES.get(flag)
    if engine is not None:
        engine.need(f"--{flag}")


@dataclass(frozen=True)
class Models:
    """Models of one deployed network, by the flags of ``export`` that ask for them."""

    run: FinishedRun
    deployed: Deployed
    example: Tensor
    """Images as they will come, ``[B, 3, H, W]``."""
    validation: EvalBatches
    batch_size: int
    """Images at a time."""
    metadata: str

    def files(self, flag: str, path: Path) -> dict[Path, bytes]:
        """The contents of the files of one model. UserError or RunFailed, naming the flag, if there is none."""
        asked = f"--{flag} {path}"
        if flag == "program":
            return {path: _made(asked, lambda: program_bytes(self._program(self._branches), self.metadata))}
        if flag in PROGRAM_ENGINES:
            engine = PROGRAM_ENGINES[flag]
            batch = 1 if engine.one_image else self.batch_size
            single = engine.one_image or self._branches
            content = _made(asked, lambda: engine.content(self._program(single), self.metadata))
            self._check(asked, engine.title, _made(asked, partial(engine.opened, content)), self.deployed.module, batch)
            return {path: content}
        engine = ENGINES[flag]
        models = _made(asked, lambda: self._onnx)
        model, choice = _made(asked, partial(fastest_model, models, self.example, engine.opened))
        if choice is not None:
            print(f"forms in {engine.title} (ms): {choice}")
        contents = _made(asked, partial(engine.files, model.content, self.metadata))
        self._check(asked, engine.title, _made(asked, partial(engine.opened, *contents)), model.module, self.batch_size)
        return dict(zip(map(path.with_suffix, engine.suffixes), contents, strict=True))

    @property
    def _branches(self) -> bool:
        """Whether the network decides for each image, and is for one at a time: others take any number."""
        return self.batch_size == 1 and decides(self.deployed.module)

    @cached_property
    def _onnx(self) -> Mapping[str, OnnxModel]:
        make = partial(onnx_bytes, example_input=self.example, single=self._branches, metadata=self.metadata)
        return onnx_models(self.run.net, self.deployed, self.example, make)

    def _program(self, single: bool) -> torch.export.ExportedProgram:
        return export_program(self.deployed.module, self.example, single=single)

    def _check(self, asked: str, engine: str, found: Run, module: nn.Module, batch_size: int) -> None:
        agreement = compare(found, module, _first(self.validation, batch_size), engine)
        if not agreement.good:
            raise RunFailed(
                f"{asked}: {engine} computes another network ({agreement}); not written. If it decides for each image, "
                "another engine may do it right; --harden removes gates that never differ"
            )
        print(f"{engine} on {agreement.images} validation images: {agreement}")


def _first(batches: EvalBatches, batch_size: int) -> Iterator[Tensor]:
    """The first images of ``batches`` in batches of another size."""
    images = torch.cat([batch.images.cpu() for _, batch in zip(range(CHECKED_IMAGES // 128), batches, strict=False)])
    return iter(images[:CHECKED_IMAGES].contiguous().split(batch_size))


def _made(flag: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except Exception as error:  # whatever the exporters raise on a network that they cannot express
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{flag}: this network can't be exported ({reason}); leave the flag out") from error
