"""Pages read strictly as HTML, and a routed run with its images to make them of."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import torch

from hybridprune.config import DataOptions
from hybridprune.data import Dataset, normalise
from hybridprune.engine.run_data import load_images
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.models.edits import Edit, FactorEdit
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.files import sha256
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.networks_and_images import all_pixels, random_net, randomise
from tests.report.run_folders import result

VOID = {"meta", "link", "img", "br"}
EDITS = (FactorEdit("backbone.blocks.1.conv1", 2, 3), FactorEdit("backbone.blocks.2.conv2", None, 5))


class Page(HTMLParser):
    """A document's elements and texts; AssertionError where tags do not nest."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All texts, white space joined."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each such element."""
        return [attributes for name, attributes in self.elements if name == tag]


def shapes(drawing: str, class_: str) -> list[ElementTree.Element]:
    """The elements of an SVG that carry this class."""
    return [e for e in ElementTree.fromstring(drawing).iter() if class_ in (e.get("class") or "").split()]


def routed_run(folder: Path, tree: Path, edits: tuple[Edit, ...] = EDITS, gated: bool = True) -> RunFolder:
    """A finished run of stage rl on an image tree, its weights random, whose gates decide differently per image."""
    options, dataset = _images(tree)
    network = NetworkSpec("resnet", 14, 4, len(dataset.classes), edits)
    net = random_net(14, 4, len(dataset.classes), edits)
    rates = [0.5] * net.num_gates if gated else [1.0] * net.num_gates
    return _finished(folder, options, dataset, network, net, rates)


def cascade_run(folder: Path, tree: Path, depths: tuple[int, ...] = (8, 14, 20)) -> RunFolder:
    """A finished run of stage rl on an image tree, a cascade of random networks of these depths.

    Two thirds of the images go on behind each member.
    """
    options, dataset = _images(tree)
    members = tuple(NetworkSpec("resnet", depth, 4, len(dataset.classes)) for depth in depths)
    spec = CascadeSpec(members)
    torch.manual_seed(0)
    net = spec.build()
    randomise(net)
    net.temperatures.copy_(torch.linspace(0.5, 2, len(members)))
    test = all_pixels(dataset.test)
    with torch.no_grad():
        going = normalise(test, dataset.mean, dataset.std, torch.contiguous_format)
        for gate, layer in enumerate(net.gate.scores()):
            logits = net(going).gate_logits[:, gate]
            middle = logits.sort().values[len(logits) // 3 - 1 :][:2].mean()  # between two images
            layer.bias -= middle
            going = going[logits > middle]
    return _finished(folder, options, dataset, spec, net, [0.5] * net.num_gates)


def _images(tree: Path) -> tuple[DataOptions, Dataset]:
    options = DataOptions(data_dir=str(tree), resize=16, num_workers=0, cache_dir=str(tree.parent / "cache"))
    return options, load_images(options)


def _finished(
    folder: Path,
    options: DataOptions,
    dataset: Dataset,
    network: NetworkSpec | CascadeSpec,
    net: RoutedNetwork,
    rates: list[float],
) -> RunFolder:
    spec = RunSpec("rl", "r1", network, dataset.classes, 16, dataset.mean, dataset.std, dataset.name, dataset.digest)
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write_json("spec.json", spec.to_json())
    run.write_json("config.json", dataclasses.asdict(options))
    run.save_weights("model.safetensors", net)
    named = {"name": network.network, "label": network.label}
    record = result("rl", "r1", dataset__digest=dataset.digest, test__routed__block_rates=rates, network=named)
    record["model_sha256"] = sha256(run.model_file)
    (folder / "result.json").write_text(json.dumps(record))
    return run
