"""Networks of a user's own: by name, ``module:factory`` or registered; what is no network is told in one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune import networks
from hybridprune.config import NetworkOptions, SpConfig, resolve
from hybridprune.config.networks import NETWORKS
from hybridprune.errors import UserError
from hybridprune.models.architectures import architecture, is_network
from hybridprune.models.own_network import check_passes
from hybridprune.models.spec import NetworkSpec
from hybridprune.networks import Backbone, ResidualBlock, allow, names, register
from hybridprune.store.find import _difference
from hybridprune.store.run_folder import RunSpec
from tests.networks_and_images import random_images
from tests.store.run_folders import SPEC, make_run

MODULE = """
from torch import nn
from hybridprune.networks import Backbone, ResidualBlock

class Block(ResidualBlock):
    def __init__(self, width):
        super().__init__()
        self.conv, self.out_channels = nn.Conv2d(width, width, 3, 1, 1), width
    def skip(self, x):
        return x
    def execute(self, x, skipped):
        return (self.conv(x) + skipped).relu()

class Net(Backbone):
    def __init__(self, width, classes):
        super().__init__()
        self.first, self.classifier = nn.Conv2d(3, width, 3), nn.Linear(width, classes)
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
    def stem(self, images):
        return self.first(images)
    def head(self, x):
        return self.classifier(x.mean((2, 3)))

class Headless(Backbone):
    def stem(self, images):
        return images

def small(classes, width=4):
    return Net(width, classes)
def sized(classes, width, depth=3):
    net = Net(width, classes)
    net.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
    return net
def fixed(classes):
    return Net(2, classes)
def more(num_classes):
    return Net(2, num_classes)
def none(width):
    return Net(width, 2)
def positional(classes, /):
    return Net(2, classes)
def fails(classes):
    raise ValueError("no luck")
def plain(classes):
    return nn.Linear(3, classes)
def headless(classes):
    return Headless()
def empty(classes):
    net = Net(2, classes)
    net.blocks = nn.ModuleList()
    return net
def mixed(classes):
    net = Net(2, classes)
    net.blocks.append(nn.Conv2d(2, 2, 1))
    return net
def unsaid(classes):
    net = Net(2, classes)
    del net.blocks[1].out_channels
    return net
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the module ``mine``; what is imported and added is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine.py").write_text(MODULE)
    before = dict(NETWORKS.added)
    yield tmp_path
    NETWORKS.added.clear()
    NETWORKS.added.update(before)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def spec_of(name: str, **options: Any) -> NetworkSpec:
    return NetworkSpec.of(NetworkOptions(name, **options), 5)


@pytest.mark.usefixtures("folder")
def test_what_its_factory_takes_shapes_it_and_rebuilds_it() -> None:
    spec = spec_of("mine:small", width=3)
    assert spec.arguments == {"width": 3, "gate": "rnn"}
    assert (str(spec), spec.label) == ("mine:small, width 3, gate rnn", "mine_small-w3")
    net = spec.build().eval()
    assert net.backbone.first.weight.shape[0] == 3 and net.num_gates == 2
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    rebuilt = again.build().eval()
    rebuilt.load_state_dict(net.state_dict())
    images = random_images(2)
    assert torch.equal(rebuilt(images).logits, net(images).logits)
    assert torch.equal(net.backbone(images), net(images, torch.ones(2, 2)).logits)
    assert spec.classifier() == ["classifier.weight", "classifier.bias"]


@pytest.mark.usefixtures("folder")
def test_what_is_not_given_is_as_its_factory_has_it() -> None:
    spec = spec_of("mine:small")
    assert (spec.depth, spec.width, spec.arguments) == (None, None, {"gate": "rnn"})
    assert (str(spec), spec.label) == ("mine:small, gate rnn", "mine_small")
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.build().backbone.first.weight.shape[0] == 4
    of_a_run_that_is_older = NetworkSpec.from_json({**spec.to_json(), "depth": 32, "width": 64})
    assert of_a_run_that_is_older.build().backbone.first.weight.shape[0] == 64
    with pytest.raises(ValueError, match="width"):
        NetworkSpec.from_json({**spec.to_json(), "network": "resnet", "depth": 8})


@pytest.mark.usefixtures("folder")
def test_its_bounds_are_its_factorys_and_what_it_needs_is_asked_for() -> None:
    spec = spec_of("mine:sized", depth=2, width=1)
    assert spec.label == "mine_sized2-w1" and len(spec.build().backbone.blocks) == 2
    assert len(spec_of("mine:sized", width=1).build().backbone.blocks) == 3
    with pytest.raises(UserError, match=r"^--width: --network mine:sized needs it; give it, or its factory a default$"):
        spec_of("mine:sized", depth=2)
    with pytest.raises(UserError, match=r"^--depth 2: a CIFAR ResNet has 6n \+ 2 layers"):
        spec_of("resnet", depth=2).build()


@pytest.mark.usefixtures("folder")
def test_a_run_of_another_size_is_no_parent() -> None:
    def run(**options: Any) -> RunSpec:
        return dataclasses.replace(SPEC, network=spec_of("mine:small", **options))

    assert _difference(run(), run()) is _difference(run(width=4), run(width=4)) is None
    assert _difference(run(width=4), run()) == "width 4, not its factory's default"
    assert _difference(run(), run(width=4)) == "width its factory's default, not 4"


def test_a_stranger_does_not_say_what_is_imported(folder: Path) -> None:
    """A run is read, listed and compared without its network's module, and never imports it."""
    (folder / "evil.py").write_text("raise AssertionError('imported')")
    run = make_run(folder / "run", SPEC)
    record = SPEC.to_json()
    record["network"]["network"] = "evil:factory"
    (run.path / "spec.json").write_text(json.dumps(record))
    assert run.read_spec().network.network == "evil:factory" and is_network("evil:factory")
    for use in (run.load_network, lambda: hybridprune.load(run.path), lambda: run.read_spec().network.build()):
        with pytest.raises(UserError, match=r"^network evil:factory: is imported only if you name it") as refused:
            use()
        assert str(refused.value).endswith('in Python call hybridprune.networks.allow("evil:factory")')
    assert "evil" not in sys.modules
    for name in ("os:system", "builtins:exec"):  # what is imported already is not called either
        record["network"]["network"] = name
        (run.path / "spec.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=f"^network {name}: is imported only if you name it"):
            run.load_network()


def test_a_file_does_not_say_what_is_imported(folder: Path) -> None:
    (folder / "config.json").write_text('{"network": "evil:factory"}')
    arguments = {"prog": "x", "description": "", "config_path": "config.json"}
    with pytest.raises(UserError, match=r"^config.json: network evil:factory: a file may not say what is imported"):
        resolve(SpConfig(), [], **arguments)
    invocation = resolve(SpConfig(), ["--network", "evil:factory"], **arguments)
    assert invocation.config.network.network == "evil:factory"  # and is found out later to be none
    (folder / "config.json").write_text('{"network": "torchvision:resnet18"}')
    assert resolve(SpConfig(), [], **arguments).config.network.network == "torchvision:resnet18"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mina:small", "there is no module mina, installed or in .*, did you mean mine?"),
        ("mine:smal", "mine has no smal; give a name that it defines, did you mean small?"),
        ("mine:number", "is a int, no function; a factory takes classes and, as it likes, depth, width"),
        ("mine:more", "needs num_classes, which it is not given; a factory takes .*, did you mean classes?"),
        ("mine:none", "does not take classes; a factory takes classes"),
        ("mine:positional", "needs classes, which it is not given; a factory takes classes"),
        ("mine:Net.forward", "needs self, which it is not given"),
        ("mine:fails", r"its factory fails \(ValueError: no luck, mine.py line \d+\); mend it"),
        ("mine:headless", r"its factory fails \(TypeError: Can't instantiate abstract class Headless .*head"),
        ("mine:plain", "gives a Linear, no hybridprune.networks.Backbone; give one"),
        ("mine:empty", "its blocks are no nn.ModuleList with a block in it"),
        ("mine:mixed", "its blocks.3 is a Conv2d, no hybridprune.networks.ResidualBlock"),
        ("mine:unsaid", "its blocks.1 has no out_channels"),
    ],
)
def test_a_mistake_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^--network {name}: {message}") as refused:
        spec_of(name).build()
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "--depth 20: --network mine:fixed does not read it; leave it out, or give its factory a"),
        ({"width": 3}, "--width 3: --network mine:fixed does not read it"),
        ({"shakedrop": 0.5}, "--shakedrop 0.5: --network mine:fixed does not read it"),
    ],
)  # fmt: skip
def test_options_that_its_factory_does_not_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        spec_of("mine:fixed", **options)
    assert spec_of("mine:fixed", gate="ff1").label == "mine_fixed-ff1"
    assert spec_of("mine:fixed", depth=32, width=64).label == "mine_fixed"


@pytest.mark.usefixtures("folder")
def test_names_of_ones_own() -> None:
    allow("mine:small")
    factory = architecture("mine:small").factory
    register("mine", factory)
    assert "mine" in names() and spec_of("mine", width=2).build().num_gates == 2
    with pytest.raises(UserError, match=r"^name 'resnet': is taken"):
        register("resnet", factory)
    with pytest.raises(UserError, match=r"^network five: is a int, no function"):
        register("five", 5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^network mine:smal: mine has no smal"):
        allow("mine:smal")
    assert "five" not in names() and "mine:smal" not in NETWORKS.added
    with pytest.raises(UserError, match=r"must be one of resnet, preresnet, .*, mine or .* mean mine\?$"):
        spec_of("minee")


def test_an_installed_package_adds_its_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "mine:small", "hybridprune.networks")
    monkeypatch.setattr(
        "hybridprune.config.registry.entry_points", lambda group: [point] if group == "hybridprune.networks" else []
    )
    assert is_network("theirs") and "mine" not in sys.modules
    assert spec_of("theirs", width=2).label == "theirs-w2"


class Block(ResidualBlock):
    """Gives as many channels as it is told to, not as many as it says."""

    def __init__(self, skipped: int, executed: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(2, skipped, 1), nn.Conv2d(2, executed, 1)
        self.out_channels = 2

    def skip(self, x: Tensor) -> Tensor:
        return self.one(x)

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        return self.other(x)


class Net(Backbone):
    def __init__(self, block: ResidualBlock, classes: int, taken: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])
        self.classifier = nn.Linear(2, classes)
        self.taken = taken

    def stem(self, images: Tensor) -> Tensor:
        return images[:, : self.taken]

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("skipped", "executed", "classes", "taken", "message"),
    [
        (2, 2, 5, 2, None),
        (2, 3, 5, 2, r"its blocks.0 gives \[1, 2, 8, 8\] skipped and \[1, 3, 8, 8\] executed; with out_channels 2"),
        (3, 3, 5, 2, r"its blocks.0 gives \[1, 3, 8, 8\] skipped"),
        (2, 2, 4, 2, r"its head gives \[1, 4\]; it has to give logits \[B, 5\]"),
        (2, 2, 5, 1, r"fails on an image \[1, 3, 8, 8\] \(RuntimeError: "),
    ],
)
def test_an_image_passes_through_all_of_it(
    skipped: int, executed: int, classes: int, taken: int, message: str | None
) -> None:
    net = Net(Block(skipped, executed), classes, taken)
    if message is None:
        check_passes(net, random_images(1), 5, "--network mine")
        return
    with pytest.raises(UserError, match=f"^--network mine: {message}") as refused:
        check_passes(net, random_images(1), 5, "--network mine")
    assert "\n" not in str(refused.value)


def test_the_public_names_are_there() -> None:
    assert all(hasattr(networks, name) for name in networks.__all__)
    assert hybridprune.networks is networks
