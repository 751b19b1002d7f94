"""One layer as an ONNX model computes what the layer computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hybridprune.deployment.agreement import Run
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.latency.engines import Exported, engine_of
from hybridprune.latency.layer_graph import layer_graph
from hybridprune.models.factored import DENSE, Ranks
from tests.deployment.test_channel_blocks import groups
from tests.latency.test_geometry import LAYERS, traced

FORMS = [DENSE, Ranks(3, None), Ranks(None, 4), Ranks(3, 4), Ranks(5, 5, separable=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ranks", FORMS)
@pytest.mark.parametrize("name", [name for name in LAYERS if "factored" not in name and name != "two-sided"])
def test_the_model_is_the_layer(name: str, ranks: Ranks, engine: str) -> None:
    geometry = traced(name)["0"]
    if (geometry.depthwise and ranks != DENSE) or (ranks.separable and not geometry.kernel):
        return
    layer, x = geometry.layer(ranks), geometry.images(2)
    expected = layer(x)
    (found,) = ENGINES[engine].opened(layer_graph(layer, x, 8 if ranks.separable else 1))(x.numpy())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_engine_times_it_filled_up(name: str) -> None:
    engine, geometry = engine_of(name, torch.device("cpu")), traced("3x3")["0"]
    assert isinstance(engine, Exported)
    read: list[bytes] = []

    def opened(content: bytes) -> Run:
        read.append(content)
        return engine.engine.opened(content)

    watched = replace(engine, engine=replace(engine.engine, opened=opened))
    layer = geometry.layer(Ranks(5, 5, separable=True))
    (run,) = watched.arms(layer, engine.input(geometry.images(2))).values()
    (found,) = run()  # type: ignore[misc]
    assert engine.key["engine"] == name and engine.key[name]
    assert found.shape == (2, 9, 8, 8) and groups(read[0]) == [8]
