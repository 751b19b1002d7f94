"""What AOTInductor and ExecuTorch compile computes what the network does, and says what it is of."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from hybridprune.deployment.agreement import compare
from hybridprune.deployment.program import export_program
from hybridprune.deployment.program_engines import PROGRAM_ENGINES
from hybridprune.errors import UserError

ABOUT = '{"classes": ["a", "b"]}'
IMAGES = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@cache
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, 5)).eval()


@pytest.mark.exhaustive
@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_aotinductor_takes_any_number_of_images(tmp_path: Path) -> None:
    engine = PROGRAM_ENGINES["aotinductor"]
    content = engine.content(export_program(net(), IMAGES), ABOUT)
    run = engine.opened(content)
    for batch in (1, 4, 9):
        found = compare(run, net(), IMAGES.split(batch))
        assert found.good and found.images == 9 and found.difference < 1e-5
    assert not compare(run, nn.Sequential(net(), nn.Linear(5, 5)), [IMAGES]).good
    (tmp_path / "net.pt2").write_bytes(content)
    assert torch._inductor.aoti_load_package(str(tmp_path / "net.pt2")).get_metadata()["hybridprune"] == ABOUT


@pytest.mark.full
def test_executorch_takes_one_image() -> None:
    pytest.importorskip("executorch")
    engine = PROGRAM_ENGINES["executorch"]
    content = engine.content(export_program(net(), IMAGES, single=True), ABOUT)
    run = engine.opened(content)
    found = compare(run, net(), IMAGES.split(1))
    assert engine.one_image and found.good and found.images == 9 and found.difference < 1e-5
    with pytest.raises(RuntimeError):
        run(IMAGES.numpy())
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    about = Runtime.get().load_program(content).load_method("hybridprune")
    assert about is not None and about.execute([]) == [ABOUT]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--executorch: needs executorch; pip install 'hybridprune\[mobile\]'"):
        PROGRAM_ENGINES["executorch"].need("--executorch")
