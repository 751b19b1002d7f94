"""Detectors of torchvision: pruned by their own losses, saved, restored, and their backbones deployed."""

from __future__ import annotations

import runpy

import pytest

from tests import ROOT


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")  # of layers that are left alone
def test_a_detector_with_frozen_norms_goes_all_the_way() -> None:
    example = runpy.run_path(str(ROOT / "examples/detector.py"))
    found = example["main"]("ssdlite", 32, frozen=True)
    assert found["restored"] == 0 and found["deployed"] < 1e-4
    assert 0.6 < found["flops"] <= 0.7 and found["edits"] > 20
