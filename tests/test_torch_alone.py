"""Foreign operations are never run on marked numbers."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from hybridprune.torch_alone import ForeignOperation, TorchAlone


def test_operations_of_torch_run_and_others_do_not() -> None:
    maps, boxes = torch.full((1, 3, 8, 8), torch.nan), [torch.tensor([[1.0, 1.0, 5.0, 5.0]])]
    with torch.no_grad(), TorchAlone():
        found = torch.nn.functional.conv2d(maps, torch.ones(2, 3, 3, 3)).relu().mean()
        with pytest.raises(ForeignOperation, match=r"torchvision\.roi_align"):
            roi_align(maps, boxes, 2)
    assert found.isnan()
    with torch.no_grad(), TorchAlone(lambda args: (args[0].nan_to_num(2.0), *args[1:])):
        assert roi_align(maps, boxes, 2).equal(torch.full((1, 3, 2, 2), 2.0))
    assert roi_align(torch.ones(1, 3, 8, 8), boxes, 2).equal(torch.ones(1, 3, 2, 2))
