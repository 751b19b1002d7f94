"""State dicts as training scripts save them: wrapped, in containers, beside other things; never executed."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.store.checkpoints import CONTAINERS, read_state_dict

STATE = {"conv.weight": torch.ones(2, 3), "bn.num_batches_tracked": torch.tensor(4)}


def read(stored: object, tmp_path: Path) -> dict[str, Tensor]:
    torch.save(stored, tmp_path / "net.pt")
    return read_state_dict(tmp_path / "net.pt")


def assert_state(found: dict[str, Tensor]) -> None:
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "", "module.", "_orig_mod.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model.",
        "_orig_mod._orig_mod.backbone.module.", "module.backbone._orig_mod.backbone.", "model._orig_mod.net.",
    ],
)  # fmt: skip
def test_what_wrappers_put_in_front(prefix: str, tmp_path: Path) -> None:
    assert_state(read(prefixed(prefix), tmp_path))
    save_file(prefixed(prefix), tmp_path / "net.safetensors")
    assert_state(read_state_dict(tmp_path / "net.safetensors"))


def test_what_wrappers_put_inside(tmp_path: Path) -> None:
    # Of nn.DataParallel and torch.compile around parts of a network.
    state = {"features.module.0.weight": torch.ones(1), "head._orig_mod.fc._orig_mod.bias": torch.ones(1)}
    assert read(state, tmp_path).keys() == {"features.0.weight", "head.fc.bias"}


def test_an_averaged_model(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    assert read(averaged.state_dict(), tmp_path).keys() == {"weight", "bias"}


@pytest.mark.parametrize("key", CONTAINERS)
def test_containers(key: str, tmp_path: Path) -> None:
    beside = {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(1)}}, "param_groups": []}}
    assert_state(read({key: STATE, **beside}, tmp_path))
    assert_state(read({"checkpoint": None, key: {"state_dict": OrderedDict(prefixed("module."))}, **beside}, tmp_path))


def test_containers_without_weights_are_passed_over(tmp_path: Path) -> None:
    assert_state(read({"state_dict": {}, "model": {"epoch": 3}, "net": STATE, "lr": torch.tensor(0.1)}, tmp_path))


def test_the_trained_weights_come_before_their_average(tmp_path: Path) -> None:
    other = {name: torch.zeros_like(value) for name, value in STATE.items()}
    assert_state(read({"ema": other, "model": STATE}, tmp_path))
    assert_state(read({"ema": STATE, "epoch": 1}, tmp_path))


def test_what_is_no_weight_is_left_out(tmp_path: Path) -> None:
    arguments = argparse.Namespace(lr=0.1, output=tmp_path, data=[1, "a"])
    numbers = {"acc": np.float64(0.7), "best": np.float32(1), "epoch": np.int64(3), "good": np.bool_(True)}
    assert_state(read({"model": {**STATE, "step": 3, **numbers}, "args": arguments, **numbers}, tmp_path))


def test_numbers_of_numpy_1(tmp_path: Path) -> None:
    torch.save({"model": STATE, "acc": np.float64(0.7)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "net.pt", "w") as old:
        for name in new.namelist():  # protocol 2 writes names of modules as lines
            old.writestr(name, new.read(name).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
        assert b"cnumpy.core.multiarray\nscalar" in old.read("new/data.pkl")
    assert_state(read_state_dict(tmp_path / "net.pt"))


@dataclasses.dataclass
class Payload:
    """Not data: making it again takes code."""


class Command:
    """Executes a command wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"model": STATE, "args": Payload()}, r"holds a \S*Payload, which only its own code can make"),
        (nn.Linear(1, 1), r"holds a torch\.nn\.modules\.linear\.Linear, which only"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"epoch": 3, "loss": 1.0}, r"holds no state dict \(it has epoch, loss\)"),
        ({"generator": STATE}, r"holds no state dict \(it has generator\)"),
        ({0: torch.ones(1)}, r"holds no state dict \(it has 0\)"),
        ({**STATE, **prefixed("module.")}, r"holds conv\.weight twice, once as module\.conv\.weight"),
        ({"w": torch.tensor([1.0, float("nan")])}, "w is not finite"),
        ({"w": torch.tensor([1.0, float("inf")])}, "w is not finite"),
        ({"w": torch.ones(2, device="meta")}, "w is not finite or no plain tensor"),
        ({"w": torch.ones(2).to_sparse()}, "w is not finite or no plain tensor"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "w is not finite or no plain tensor"),
    ],
)
def test_what_cannot_be_taken(stored: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--weights {tmp_path / 'net.pt'}: .*{words}.*; save") as caught:
        read(stored, tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_is_executed(tmp_path: Path) -> None:
    for protocol in (2, 4):
        torch.save({"model": STATE, "x": Command(tmp_path / "hit")}, tmp_path / "net.pt", pickle_protocol=protocol)
        with pytest.raises(UserError):
            read_state_dict(tmp_path / "net.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Command(tmp_path / "hit")))
    with pytest.raises(UserError):
        read_state_dict(tmp_path / "plain.pt")
    assert not (tmp_path / "hit").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_files_that_are_no_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "script.pt")
    torch.save(STATE, tmp_path / "whole.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-100])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.pt":
            with pytest.raises(UserError, match=str(path)) as caught:
                read_state_dict(path)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(UserError, match="no such file"):
        read_state_dict(tmp_path / "nowhere.pt")


def test_the_allow_list_is_for_these_files_only(tmp_path: Path) -> None:
    read({"model": STATE, "acc": np.float64(0.7), "args": argparse.Namespace()}, tmp_path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
