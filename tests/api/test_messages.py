"""Every public function tells a bad call in one line, in the names of its arguments: flags are for command lines."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
import hybridprune.methods
from hybridprune.api.cascaded import Member
from hybridprune.api.inference import Model
from hybridprune.config import DataOptions
from hybridprune.deployment import Harden
from hybridprune.errors import UserError
from hybridprune.models.cascade import Cascade
from hybridprune.report.bootstrap import Difference
from tests.networks_and_images import random_images, random_net
from tests.store.run_folders import SPEC, make_run

Bad = Callable[..., object]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).eval()


class Several(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def pruned() -> hybridprune.Pruned:
    return hybridprune.Pruned(net(), hybridprune.PrunedSpec((), 1, 1, 1, 1))


def saved(folder: Path) -> Path:
    hybridprune.save(pruned(), folder / "saved")
    return folder / "saved"


def joined(folder: Path) -> Path:
    members = tuple(Member(name, 1, 1.0, 1.0) for name in ("small", "large"))
    ahead = Difference(0.0, 0.0, 0.0)
    found = hybridprune.Cascaded(Cascade([net(), net()], 10), members, 1.0, 1.0, 1, 1.0, ahead)
    hybridprune.save(found, folder / "joined")
    return folder / "joined"


def run(folder: Path, finished: bool = True) -> Path:
    return make_run(folder / "run", finished=finished).path


def broken(folder: Path) -> Path:
    (saved(folder) / "spec.json").write_text("{}")
    return folder / "saved"


def of_another_shape(folder: Path) -> Path:
    path = run(folder)
    (path / "spec.json").write_text((path / "spec.json").read_text().replace('"width": 2', '"width": 4'))
    return path


def file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def train(*args: Any, **options: Any) -> object:
    return hybridprune.train(*args, **{"device": "cpu", **options})


def finetune(model: Any, dataset: Any = "digits", method: Any = "rni", **options: Any) -> object:
    return hybridprune.prune_finetune(model, dataset, method, device="cpu", **options)


MODEL = Model(random_net(8, 2, 3), SPEC)
IMAGE = torch.zeros(1, 3, 8, 8)
BATCHES = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]

BAD: dict[str, list[tuple[Bad, str]]] = {
    "cascade": [
        (lambda at: hybridprune.cascade(3, net(), BATCHES, target_flops=0.5), "small: is a int; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.cascade(net(), net(), 3, target_flops=0.5), "calibration_loader: is a int; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.cascade(net(), net(), BATCHES, target_flops=0), "target_flops 0: must be above 0"),
        (
            lambda at: hybridprune.cascade(net(), net(), BATCHES, target_flops=1, between=[3]),  # type: ignore[list-item]
            r"between\[0\]: is a int; give",
        ),
        (lambda at: hybridprune.cascade(net(), net(), BATCHES, target_flops=1, seed=-1), "seed -1: must be at least 0"),
    ],
    "prune": [
        (lambda at: hybridprune.prune(3, BATCHES), "model: is a int; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.prune(net(), BATCHES, target_flops=0), "target_flops 0: must be above 0"),
        (lambda at: hybridprune.prune(net(), BATCHES, target_latency=0), "target_latency 0: must be above 0"),
        (lambda at: hybridprune.prune(net(), BATCHES, target_flops=0.5, kd_weight=2), "kd_weight 2: must be at most 1"),
    ],
    "accuracy": [
        (lambda at: hybridprune.accuracy([net()], BATCHES), "model: is a list; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.accuracy(net(), []), "the loader gives no labelled images"),
    ],
    "save": [
        (lambda at: hybridprune.save(net(), at), "result: is a Sequential; give what prune or cascade"),  # type: ignore[arg-type]
        (lambda at: hybridprune.save(pruned(), file(at)), "folder .*file: is a file; name a folder"),
        (lambda at: hybridprune.save(pruned(), 3), "folder: is a int; name a folder"),  # type: ignore[arg-type]
    ],
    "restore": [
        (lambda at: hybridprune.restore(at, net()), r".*: holds no spec\.json; name a folder that hybridprune\.save"),
        (lambda at: hybridprune.restore(at / "none", net()), ".*none: no such folder; name a folder that hybridprune"),
        (lambda at: hybridprune.restore(file(at), net()), ".*file: is a file; name a folder that hybridprune"),
        (lambda at: hybridprune.restore(run(at), net()), r".*run: is a run folder; use hybridprune\.load"),
        (lambda at: hybridprune.restore(broken(at), net()), r".*spec\.json: not a pruned module's specification"),
        (lambda at: hybridprune.restore(3, net()), "source: is a int; name a folder"),  # type: ignore[arg-type]
        (lambda at: hybridprune.restore(at, "net"), "into: is a str; give a fresh instance"),  # type: ignore[arg-type]
        (lambda at: hybridprune.restore(saved(at), [net()]), "into: is a list; give a fresh instance"),
        (
            lambda at: hybridprune.restore(joined(at), net()),
            "into: is a Sequential, and .*joined holds a cascade; give",
        ),
        (lambda at: hybridprune.restore(joined(at), [net()]), "into: are 1, and .*joined holds a cascade of 2; give"),
        (lambda at: hybridprune.restore(joined(at), [net(), 3]), r"into\[1\]: is a int; give"),  # type: ignore[list-item]
        (
            lambda at: hybridprune.restore(saved(at), nn.Linear(2, 3)),
            ".*checkpoint of another architecture: .*; give the network that it was saved from",
        ),
    ],
    "load": [
        (lambda at: hybridprune.load(at / "none"), ".*none: no such run; name a run folder"),
        (
            lambda at: hybridprune.load(run(at, finished=False)),
            ".* not finished; run its stage again with the flag res",
        ),
        (lambda at: hybridprune.load(of_another_shape(at)), ".*checkpoint of another architecture: "),
        (lambda at: hybridprune.load(run(at), device="tpu"), "device tpu: not available"),
        (lambda at: hybridprune.load(at), r".*: is no run folder, spec\.json is missing; name a run folder$"),
        (lambda at: hybridprune.load(run(at).parent), ".*; name a run folder, such as .*run$"),
        (lambda at: hybridprune.load(3), "run: is a int; name a run folder"),  # type: ignore[arg-type]
        (lambda at: hybridprune.load(run(at), into=net()), r"into: .* use hybridprune\.restore\("),  # type: ignore[arg-type]
        (lambda at: hybridprune.load(saved(at)), r".*saved: holds a pruned module .* use hybridprune\.restore\("),
    ],
    "predict": [
        (lambda at: hybridprune.predict(net(), []), r"model: is a Sequential; give what hybridprune\.load"),  # type: ignore[arg-type]
        (lambda at: hybridprune.predict(MODEL, 3), "image 0 is a int; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.predict(MODEL, [], mode="fast"), "mode 'fast': must be one of "),  # type: ignore[arg-type]
    ],
    "deploy": [
        (lambda at: hybridprune.deploy([net()], IMAGE), "model: is a list; give a torch"),  # type: ignore[arg-type]
        (lambda at: hybridprune.deploy(net(), [IMAGE]), "example_input: is a list; only"),  # type: ignore[arg-type]
        (lambda at: hybridprune.deploy(net(), IMAGE, "tpu"), "device tpu: not available"),
        (lambda at: hybridprune.deploy(net(), IMAGE, harden=Harden()), "harden: changes decisions, so it needs gates"),
        (lambda at: hybridprune.deploy(net(), IMAGE[:0]), r"example_input: is \[0, 3, 8, 8\]; give images"),
        (lambda at: hybridprune.deploy(net(), IMAGE[:, :1]), "example_input: the network fails on it .RuntimeError: "),
        (lambda at: hybridprune.deploy(net(), IMAGE, validation=[]), "validation: gives no batches"),
        (lambda at: hybridprune.deploy(net(), IMAGE, validation=BATCHES), "validation: a batch is a tuple; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.deploy(net(), IMAGE, validation=iter([])), "validation: is a list_iterator, which can"),
        (
            lambda at: hybridprune.deploy(random_net(8), random_images(1), rates=[0.5]),
            "rates: are 1, and the network has 2 gated blocks",
        ),
        (
            lambda at: hybridprune.deploy(random_net(8), random_images(1), rates=[0.5, 2]),
            "rates: that of block 2 is 2; give shares",
        ),
    ],
    "count": [
        (lambda at: hybridprune.count(net(), 16), "net: is a Sequential, not a gated network"),  # type: ignore[arg-type]
        (lambda at: hybridprune.count(random_net(8), True), "input_size True: must be a whole number"),
    ],
    "count_weights": [(lambda at: hybridprune.count_weights(3), "model: is a int; give")],  # type: ignore[arg-type]
    "effective_sparsity": [
        (lambda at: hybridprune.effective_sparsity(3, IMAGE, 5), "model: is a int; give"),  # type: ignore[arg-type]
        (lambda at: hybridprune.effective_sparsity(net(), [IMAGE], 5), "example: is a list"),  # type: ignore[arg-type]
        (lambda at: hybridprune.effective_sparsity(net(), IMAGE.expand(2, 3, 8, 8), 5), r"example: is \[2, 3, 8, 8\]"),
        (lambda at: hybridprune.effective_sparsity(net(), IMAGE, 0), r"dense_weights 0: .* count_weights\(net\)"),
        (lambda at: hybridprune.effective_sparsity(random_net(8), IMAGE, 5), "model: fails on the example .* backbone"),
        (lambda at: hybridprune.effective_sparsity(net(), IMAGE[..., :5], 5), "model: fails on the example "),
        (lambda at: hybridprune.effective_sparsity(Several(), IMAGE, 5), "model: gives a tuple; its output has to be"),
    ],
    "train": [
        (lambda at: train("cifar", "vgg11-w4", "rni"), "dataset cifar is unknown: did you mean cifar10"),
        (lambda at: train("tree", "vgg11-w4", "rni"), r"DataOptions\.data_dir is missing"),
        (lambda at: train(DataOptions(data_dir=str(at)), "vgg11-w4", "rni"), r"DataOptions\.data_dir .*: no train"),
        (lambda at: train(3, "vgg11-w4", "rni"), "dataset: is a int; give a name"),
        (lambda at: train("digits", "resnet9", "rni"), r"arch resnet9: depth 9: a CIFAR ResNet has 6n \+ 2 layers"),
        (lambda at: train("digits", 3, "rni"), "arch 3: give vgg16"),
        (lambda at: train("digits", "vgg11-w4", ["rni"]), r"method \['rni'\]: must be one of rni"),
        (lambda at: train("digits", "vgg11-w4", "rni", epochs="3"), 'epochs "3": must be a whole number'),
        (lambda at: train("digits", "vgg11-w4", "rni", batch_size=1), "batch_size 1: must be at least 2"),
        (lambda at: train("digits", "vgg11-w4", "rni", reg_weight="1"), 'reg_weight "1": must be a number'),
        (lambda at: train("digits", "vgg11-w4", "rni", device="tpu"), "device tpu: not available"),
    ],
    "prune_finetune": [
        (lambda at: finetune("vgg"), "model: is a str; give a network"),
        (lambda at: finetune(net(), prune_pc=1.5), "prune_pc 1.5: must be at most 1"),
        (lambda at: finetune(net(), dataset=DataOptions(dataset="digit")), "dataset digit is unknown: did you mean d"),
        (lambda at: finetune(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))), "model: has 3 outputs for 10 classes"),
        (
            lambda at: finetune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))),
            "model: no BatchNorm scales the channels of 0; give a vgg",
        ),
    ],
    "methods.find": [(lambda at: hybridprune.methods.find("taylr"), "method taylr: there is no such name")],
    "methods.register": [(lambda at: hybridprune.methods.register("l1", nn.ReLU()), "method .*: is a ReLU; give a Ch")],  # type: ignore[arg-type]
}
CASES = [(function, number) for function, bad in BAD.items() for number in range(len(bad))]


@pytest.mark.parametrize(("function", "number"), CASES)
def test_a_bad_call_is_told_in_the_names_of_arguments(function: str, number: int, tmp_path: Path) -> None:
    bad, message = BAD[function][number]
    with pytest.raises(UserError, match=f"^{message}") as refused:
        bad(tmp_path)
    told = str(refused.value).replace(os.fspath(tmp_path), "")
    assert "\n" not in told and "--" not in told


def test_every_public_function_is_here() -> None:
    assert {name for name in hybridprune.__all__ if inspect.isfunction(getattr(hybridprune, name))} <= BAD.keys()
