from __future__ import annotations

import base64
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridprune.data import normalise
from hybridprune.engine.evaluate import Evaluation
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.report.html.gallery import cheapest_first, data_uri, gallery
from hybridprune.report.html.routed_images import route_images
from tests.networks_and_images import all_pixels
from tests.report.html.pages import cascade_run, routed_run


def test_order_is_by_macs_then_by_willingness() -> None:
    draw = torch.Generator().manual_seed(0)
    decisions = torch.randint(2, (40, 3), generator=draw).float()
    logits, macs = torch.randn(40, 3, generator=draw), (5, 1, 3)
    routed = Evaluation.of(torch.zeros(40, 2), decisions, torch.zeros(40, dtype=torch.long), logits)
    spent = decisions.numpy() @ np.array(macs)
    assert cheapest_first(routed, macs) == np.lexsort((logits.double().mean(1).numpy(), spent)).tolist()


def test_a_fixed_subset_of_blocks_has_no_order() -> None:
    decisions = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    routed = Evaluation.of(torch.zeros(4, 2), decisions, torch.zeros(4, dtype=torch.long), torch.randn(4, 2))
    assert cheapest_first(routed, (1, 1)) is None
    without = Evaluation.of(torch.zeros(4, 2), torch.zeros(4, 0), torch.zeros(4, dtype=torch.long), torch.zeros(4, 0))
    assert cheapest_first(without, ()) is None


def test_images_survive_as_they_are() -> None:
    pixels = torch.randint(256, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    uri = data_uri(pixels)
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert np.array_equal(shown, pixels.permute(1, 2, 0).numpy())


def test_what_is_shown_is_what_the_network_does(tmp_path: Path, image_tree: Path) -> None:
    run = routed_run(tmp_path / "run", image_tree)
    found = gallery(route_images(run, 100, None, "cpu"), dense_macs=10**6, shown=3)
    assert found is not None and (found.images, found.total) == (30, 30)
    net, spec = run.load_network()
    test, cost = load_dataset_of(run, spec, None).test, count(net, 16)
    pixels = normalise(all_pixels(test), spec.mean, spec.std, torch.contiguous_format)
    with torch.no_grad():
        routed = net.eval()(pixels, mode="executed")
    executed = routed.decisions.sum(1).int().tolist()
    assert found.counts == Counter(executed) and found.gates == net.num_gates and not found.cascade
    macs = [cost.expected_macs(decisions) for decisions in routed.decisions.double().tolist()]
    for image in (*found.least, *found.most):
        assert image.executed == executed[image.index]
        assert image.share == pytest.approx(macs[image.index] / 1e6)
        assert image.label == spec.class_names[int(test.labels[image.index])]
        assert image.prediction == spec.class_names[int(routed.logits[image.index].argmax())]
        assert image.png == data_uri(all_pixels(test)[image.index])
    assert [round(image.share * 1e6) for image in found.least] == [round(m) for m in sorted(macs)[:3]]
    assert [round(image.share * 1e6) for image in found.most] == [round(m) for m in sorted(macs)[:-4:-1]]
    evaluation = Evaluation.of(routed.logits, routed.decisions, test.labels, routed.gate_logits)
    order = cheapest_first(evaluation, cost.block_macs)
    assert order is not None
    assert [image.index for image in found.least] == order[:3]
    assert [image.index for image in found.most] == order[:-4:-1]


def test_behind_the_gate_that_stops_an_image_no_logit_counts() -> None:
    decisions = torch.tensor([[0.0, 0], [1, 1], [1, 0], [0, 0], [1, 1]])
    logits = torch.tensor([[-1.0, -torch.inf], [3, 3], [1, -1], [-2, -torch.inf], [1, 1]])
    routed = Evaluation.of(torch.zeros(5, 2), decisions, torch.zeros(5, dtype=torch.long), logits)
    assert cheapest_first(routed, (5, 7)) == [3, 0, 2, 4, 1]


def test_a_cascade_shows_images_that_stop_and_images_that_go_on(tmp_path: Path, image_tree: Path) -> None:
    images = route_images(cascade_run(tmp_path / "run", image_tree), 100, None, "cpu")
    assert images.first is not None and images.margins is not None
    going = images.routed.decisions[:, 0] > 0
    found = gallery(images, dense_macs=10**6, shown=30)
    assert found is not None and found.cascade and found.gates == 2 and going.sum() == 20
    assert {image.index for image in found.least} == set((~going).nonzero().flatten().tolist())
    assert {image.index for image in found.most} == set(going.nonzero().flatten().tolist())
    assert all(image.executed == 0 for image in found.least) and found.most[0].executed == 2
    for image in (*found.least, *found.most):
        assert image.margin == pytest.approx(float(images.margins[image.index]))
        assert image.first == images.spec.class_names[int(images.first[image.index].argmax())]
        assert image.prediction == images.spec.class_names[int(images.routed.predictions[image.index])]
        spent = images.cost.expected_macs(images.routed.decisions[image.index].tolist())
        assert image.share == pytest.approx(spent / 1e6)
    logits = images.routed.gate_logits[:, 0]
    assert [image.index for image in found.least] == sorted(
        (~going).nonzero().flatten().tolist(), key=lambda place: float(logits[place])
    )
    few = gallery(images, dense_macs=10**6, shown=3)
    assert few is not None and few.least == found.least[:3] and few.most == found.most[:3]


def test_a_limit_routes_evenly_spaced_images(tmp_path: Path, image_tree: Path) -> None:
    run = routed_run(tmp_path / "run", image_tree)
    found = gallery(route_images(run, 7, None, "cpu"), dense_macs=10**6, shown=100)
    assert found is not None and (found.images, found.total, sum(found.counts.values())) == (7, 30, 7)
    places = {image.index for image in (*found.least, *found.most)}
    assert len(places) == 6 and places <= {0, 5, 10, 14, 15, 19, 24, 29}


def test_other_images_are_refused(tmp_path: Path, image_tree: Path) -> None:
    run = routed_run(tmp_path / "run", image_tree)
    other = Path(shutil.copytree(image_tree, tmp_path / "other"))
    next((other / "test").rglob("*.png")).unlink()
    with pytest.raises(UserError, match="other images"):
        route_images(run, 9, str(other), "cpu")
