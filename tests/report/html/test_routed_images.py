"""Routed test images against the network run on them by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hybridprune.data import normalise
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.models.cascade import Cascade
from hybridprune.report.html.routed_images import route_images
from tests.networks_and_images import all_pixels
from tests.report.html.pages import cascade_run, routed_run


def test_a_cascade_is_run_once_and_the_first_members_answers_are_kept(
    tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cascade_run(tmp_path / "run", image_tree)
    net, spec = run.load_network()
    assert isinstance(net, Cascade)
    starts: list[int] = []
    start = Cascade.start
    monkeypatch.setattr(Cascade, "start", lambda self, images: starts.append(len(images)) or start(self, images))
    found = route_images(run, 100, None, "cpu")
    assert starts == [1, 30]  # one image, without values, for the cost
    pixels = normalise(all_pixels(found.test), spec.mean, spec.std, torch.contiguous_format)
    with torch.no_grad():
        expected = net.eval()(pixels, mode="executed")
        own = net.members[0](pixels) / net.temperatures[0]
    assert torch.equal(found.routed.decisions, expected.decisions) and torch.equal(found.ids, torch.arange(30))
    assert torch.equal(found.routed.predictions, expected.logits.argmax(1))
    assert found.first is not None and found.margins is not None
    torch.testing.assert_close(found.first, own)
    for margin, logits in zip(found.margins.tolist(), own, strict=True):
        highest = sorted(logits.softmax(0).tolist())
        assert margin == pytest.approx(highest[-1] - highest[-2], abs=1e-5)
    assert {0.0, 1.0} == set(found.routed.decisions.flatten().tolist())


def test_gated_blocks_have_no_first_member(tmp_path: Path, image_tree: Path) -> None:
    run = routed_run(tmp_path / "run", image_tree)
    found = route_images(run, 7, None, "cpu")
    assert found.first is None and found.margins is None and len(found.routed.labels) == 7
    assert torch.equal(found.routed.labels, load_dataset_of(run, found.spec, None).test.labels[found.ids])
