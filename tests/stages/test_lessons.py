"""A cut network that imitates its parent: its lessons in their order, and that each of them can be interrupted."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import hybridprune
from hybridprune.engine.descent import Descent
from hybridprune.engine.schedule import factor
from hybridprune.errors import Interrupted
from hybridprune.stages import prune, sp
from hybridprune.stages.lessons import restarted
from tests.cli.tiny_runs import DIGITS, OWN

STEPS = 5
"""Of an epoch."""
DATA = (*DIGITS, "--max_train_samples", "110")
LESSONS = ("--cut_weights", "imitate", "--imitate_epochs", "1", "--imitate_lr", "0.05", "--alpha", "0")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("parent")
    sp.main([*DATA, *OWN["sp"], "--epochs", "1", "--result_dir", str(results)])
    return only_run(results)


def only_run(results: Path) -> Path:
    (run,) = (path for path in (results / "default").iterdir() if path.is_dir())
    return run


def imitated(parent: Path, results: Path, *more: str) -> Path:
    where = ("--checkpoint_file", str(parent), "--result_dir", str(results))
    ways = ("--method", "uniform", "--use_out_dependencies", "--epochs_start", "1", "--epochs_end", "1")
    prune.main([*DATA, *OWN["prune"], *where, *ways, *LESSONS, *more])
    return only_run(results)


@pytest.mark.parametrize("cosines", [1, 3])
def test_each_stage_has_a_cosine_of_its_own(cosines: int) -> None:
    points, steps = restarted(cosines), 40 * cosines
    for step in range(steps):
        expected = (1 + math.cos(math.pi * (step % 40) / 40)) / 2
        assert factor("cosine", points, step / steps) == pytest.approx(expected, abs=1e-6)


@pytest.mark.full
def test_lessons_come_in_their_order_and_resume_to_the_same_bits(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = imitated(parent, tmp_path / "whole")
    backbone = hybridprune.load(whole).network.backbone
    ends = [block.conv2.out_channels for block in backbone.blocks]
    assert all(end < uncut for end, uncut in zip(ends, (4, 8, 16), strict=True)), ends  # so there were pairs
    said = capsys.readouterr().err
    order = ("3 epochs on the features", "learning the logits of the parent; 1 epochs", "fine-tuning; 1 epochs")
    assert all(said.index(a) < said.index(b) for a, b in pairwise(order))
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [0, 0, 0, 0, 1, 1, 2, 2]
    first, last = lines[0], lines[3]
    assert all(last[f"validation_imitation_{i}"] < first[f"validation_imitation_{i}"] for i in (1, 2, 3))

    step = Descent.step
    for at in (2 * STEPS + 2, 3 * STEPS + 2, 4 * STEPS + 2):
        steps = 0

        def interrupt(self: Descent, *arguments: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == at:  # noqa: B023
                raise Interrupted("now")
            step(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Descent, "step", interrupt)
            with pytest.raises(Interrupted):
                imitated(parent, tmp_path / str(at))
        resumed = imitated(parent, tmp_path / str(at), "--resume")
        assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
