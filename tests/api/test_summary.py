"""What a pruned module says of itself: a line, and a table of its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.api.summary import HEAD, layer_states
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.pruning.budget.space import Cost
from tests.api.test_replaced_layers import NO_REFIT, QUICK, Plain, batches


class Small(nn.Module):
    """Two layers of known cost, a grouped one, and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.depthwise, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.depthwise(self.norm(self.conv(x))).mean((2, 3)))


def test_states_are_those_counted_by_hand() -> None:
    net, example = Small(), torch.zeros(1, 3, 8, 8)
    states, cost = layer_states(net, example, lambda model, images: model(images))
    found = {name: (s.kind, s.form, s.ranks, s.macs, s.params) for name, s in states.items()}
    assert found == {
        "conv": ("Conv2d 3x3", "dense", "3 x 4", 64 * 108, 108),
        "depthwise": ("Conv2d 3x3, 4 groups", "dense", "4 x 4", 64 * 36, 40),
        "head": ("Linear", "dense", "4 x 5", 20, 25),
    }
    assert cost == Cost(64 * 144 + 20, 108 + 40 + 25 + 8) == Cost(*count_module(net, example))


def test_the_caller_s_random_numbers_go_on_and_each_network_is_counted_once() -> None:
    calls: list[int] = []

    class Noisy(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not x.is_meta  # so a copy really runs
            calls.append(len(x))
            return super().forward(x + 1e-3 * torch.rand(()))

    net = Noisy().eval()
    data = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])), (torch.randn(2, 3, 8, 8), torch.tensor([2, 3]))]
    before = torch.get_rng_state()
    hybridprune.prune(net, data, target_flops=0.8, method="l1", cut=NO_REFIT)
    assert torch.get_rng_state().equal(before)
    # Of one image: the first look, the plan and its check, and one before and one after the cut, for summary and costs.
    assert calls.count(1) <= 14


def pruned(method: str = "fisher-tucker") -> hybridprune.Pruned:
    return hybridprune.prune(
        Plain().eval(), batches(), target_flops=0.6, method=method, curvature=QUICK, cut=NO_REFIT, progress=False
    )


@pytest.mark.parametrize("method", ["fisher-tucker", "l1"])
def test_rows_add_up_to_the_module(method: str) -> None:
    found = pruned(method)
    layers, table = found.spec.layers, found.table()
    assert table.head == HEAD and [row[0] for row in table.body] == [
        *(x.name for x in layers),
        "everything else",
        "total",
    ]
    assert [x.name for x in layers] == [
        name for name, module in Plain().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    total = table.body[-1]
    for column, value in zip(
        range(5, 9), (found.spec.dense_macs, found.spec.macs, found.spec.dense_params, found.spec.params), strict=True
    ):
        assert sum(int(row[column].replace(",", "")) for row in table.body[:-1]) == value
        assert total[column] == f"{value:,}"
    changed = {x.name for x in layers if x.before != x.after}
    assert changed == {edit.layer for edit in found.spec.edits} & {x.name for x in layers} != set()
    if method == "l1":
        assert all(x.expected_loss is None for x in layers) and total[-1] == ""
    else:
        losses = {x.name: x.expected_loss or 0.0 for x in layers}
        assert all(losses[name] > 0 for name in changed) and {x.after.form for x in layers} != {"dense"}
        assert float(total[-1]) == pytest.approx(sum(losses.values()), rel=1e-3)


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = pruned()
    share = found.spec.macs / found.spec.dense_macs
    line = str(found)
    assert line.startswith(f"Plain, pruned: {found.spec.macs:,} of {found.spec.dense_macs:,} MACs ({share:.1%}), ")
    assert repr(found) == f"<{line}>" and "\n" not in line and len(line) < 160
    found.summary()
    assert capsys.readouterr().out == f"{line}\n\n{found.table().plain()}\n"
    assert found._repr_html_() == f"<p>{line}</p>{found.table().html()}"


def test_a_module_of_a_specification_has_the_totals_alone(tmp_path: Path) -> None:
    found = pruned()
    hybridprune.save(found, tmp_path)
    spec = hybridprune.PrunedSpec.read(tmp_path / "spec.json")
    again = hybridprune.Pruned(hybridprune.restore(tmp_path, into=Plain()), spec)
    assert spec == found.spec and spec.layers == () and str(again) == str(found)
    assert again.table().body == [(*found.table().body[-1][:-1], "")]
    record = spec.to_json()
    assert "layers" not in record
    (tmp_path / "spec.json").write_text(json.dumps({**record, "layers": []}))
    with pytest.raises(UserError, match="a key layers"):
        hybridprune.PrunedSpec.read(tmp_path / "spec.json")
