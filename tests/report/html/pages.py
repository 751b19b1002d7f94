"""Pages read strictly as HTML, and a routed run with its images to make them of."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from hybridprune.config import DataOptions
from hybridprune.data import load_dataset
from hybridprune.models.edits import Edit, FactorEdit
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.files import sha256
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.networks_and_images import random_net
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
    options = DataOptions(data_dir=str(tree), resize=16, num_workers=0, cache_dir=str(tree.parent / "cache"))
    dataset = load_dataset(
        dataset="tree",
        data_dir=options.data_dir,
        img_type="png",
        resize=16,
        num_workers=0,
        download=False,
        cache_dir=options.cache_dir,
    )
    network = NetworkSpec("resnet", 14, 4, len(dataset.classes), edits)
    net = random_net(14, 4, len(dataset.classes), edits)
    spec = RunSpec("rl", "r1", network, dataset.classes, 16, dataset.mean, dataset.std, dataset.name, dataset.digest)
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write_json("spec.json", spec.to_json())
    run.write_json("config.json", dataclasses.asdict(options))
    run.save_weights("model.safetensors", net)
    rates = [0.5] * net.num_gates if gated else [1.0] * net.num_gates
    record = result(
        "rl", "r1", dataset__digest=dataset.digest, test__routed__block_rates=rates, network__label=network.label
    )
    record["model_sha256"] = sha256(run.model_file)
    (folder / "result.json").write_text(json.dumps(record))
    return run
