"""A caller finds everything that is kept for the whole process as it was, and gets the same whatever it has set."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils.data import DataLoader, TensorDataset

import hybridprune
from hybridprune.ambient import isolated, reseed, seeded
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.data import Dataset, LabelledImages
from hybridprune.engine.initialise import initialise
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import fp32_precisions
from hybridprune.store.files import sha256
from hybridprune.store.run_folder import RunSpec
from hybridprune.store.weights import save_weights
from tests.deployment.networks import preferring
from tests.networks_and_images import random_images, random_net

pytestmark = pytest.mark.usefixtures("few_sweeps")
QUICK = CurvatureOptions(curvature_images=16, moment_images=16)
LABELS = torch.arange(24) % 3


def network() -> nn.Module:
    """With dropout, which draws in fine-tuning, a frozen layer, a hook, and a norm that is left in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    net[0].requires_grad_(False)
    net[4].register_forward_hook(lambda module, args, output: None)
    net[1].eval()
    return net


class World:
    """What a caller has made before: nothing of it is made where settings may change it."""

    def __init__(self, path: Path, pruned: bool = False) -> None:
        """``pruned``: with a network that has been pruned."""
        self.path, self.net, self.fresh = path, network(), network()
        self.gated, self.small = random_net(8), random_net(8, 8, 3).backbone
        self.images = random_images(24, 8)
        # Shuffles by the global generator.
        self.loader = DataLoader(TensorDataset(self.images, LABELS), batch_size=8, shuffle=True)
        pixels = (self.images * 40 + 128).clamp(0, 255).to(torch.uint8)
        part = LabelledImages(pixels, LABELS)
        self.dataset = Dataset("made up", part, part, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3, True, "digest")
        torch.manual_seed(5)
        spec = RunSpec(
            "sp", "id", NetworkSpec("resnet", 8, 4, 3), ("a", "b", "c"), 8, (0.5,) * 3, (0.25,) * 3, "made up", "digest"
        )
        self.run = path / "run"
        self.run.mkdir()
        save_weights(spec.network.build(), self.run / "model.safetensors")
        (self.run / "spec.json").write_text(json.dumps(spec.to_json()))
        record = {"model_sha256": sha256(self.run / "model.safetensors")}
        (self.run / "result.json").write_text(json.dumps(record))
        if pruned:
            self.pruned = hybridprune.prune(self.net, self.loader, target_flops=0.6, curvature=QUICK, cut=UNFITTED)


UNFITTED = CutOptions(refit_images=0)
SAVED = "save and load"
TRAINING: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu"}


def prune(world: World) -> nn.Module:
    cut = CutOptions(refit_images=8)
    return hybridprune.prune(
        world.net, world.loader, target_flops=0.6, fine_tune=1, lr=1e-3, curvature=QUICK, cut=cut
    ).module


def prune_from_scratch(world: World) -> nn.Module:
    cut = CutOptions(cut_weights="scratch")
    return hybridprune.prune(
        world.net, world.loader, target_flops=0.6, method="l1", fine_tune=1, cut=cut, lr=1e-3
    ).module


def saved_and_loaded(world: World) -> nn.Module:
    hybridprune.save(world.pruned, world.path / "saved")
    return hybridprune.restore(world.path / "saved", into=world.fresh)


def train(world: World) -> nn.Module:
    return hybridprune.train(world.dataset, "resnet8-w8", "rni", **TRAINING)[0]


def prune_finetune(world: World) -> nn.Module:
    return hybridprune.prune_finetune(world.small, world.dataset, "slimming", 0.3, **TRAINING)[0]


def predict(world: World) -> object:
    return hybridprune.predict(hybridprune.load(world.run), world.dataset.test.pixels(torch.arange(3)))


def deploy(world: World) -> nn.Module:
    return hybridprune.deploy(world.gated, world.images[:4], time=preferring("dense")).module


PUBLIC: dict[str, Callable[[World], object]] = {
    "prune": prune,
    "prune, new weights": prune_from_scratch,
    SAVED: saved_and_loaded,
    "train": train,
    "prune_finetune": prune_finetune,
    "load": lambda world: hybridprune.load(world.run).network,
    "predict": predict,
    "deploy": deploy,
    "deploy by the clock": lambda world: hybridprune.deploy(world.gated, world.images[:2]),
    "count": lambda world: hybridprune.count(world.gated, 8),
    "effective_sparsity": lambda world: hybridprune.effective_sparsity(world.net, torch.zeros(1, 3, 8, 8), 1000),
}


def flags() -> dict[str, object]:
    """All that torch and Python keep for the process."""
    backends = torch.backends
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "generator": torch.get_rng_state().tolist(),
        "numpy": (numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]),
        "random": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            backends.cudnn.allow_tf32,
        ),
        "fp32": (fp32_precisions(), torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32),
        "mkldnn": backends.mkldnn.enabled,
        "attention": (
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
        ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "interrupt": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "hooks": {name: list(value) for name, value in vars(global_hooks).items() if name.endswith("_hooks")},
    }


def of(net: nn.Module) -> dict[str, object]:
    """What hangs on a network's modules and parameters."""
    attached = {}
    for name, module in net.named_modules():
        hooks = [(key, list(value)) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
        attached[name] = (module, module.training, hooks, sorted(vars(module)))
    parameters = {name: (id(p), p.requires_grad, p.grad is None, p.dtype) for name, p in net.named_parameters()}
    return {"modules": attached, "parameters": parameters, "values": [v.tolist() for v in net.state_dict().values()]}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that touched generators of devices other than the CPU."""
    called: list[str] = []
    places = torch.cuda, torch.cuda.random, torch.mps, torch.xpu, torch.xpu.random
    for place in places:
        for name in ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"):
            if hasattr(place, name):
                full = f"{place.__name__}.{name}"
                monkeypatch.setattr(place, name, lambda *args, full=full, **kwargs: called.append(full))
    return called


def test_what_torch_reseeds_is_seen(others: list[str]) -> None:
    torch.manual_seed(0)
    assert "torch.cuda.manual_seed_all" in others


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_as_it_was(name: str, tmp_path: Path, others: list[str]) -> None:
    world = World(tmp_path, pruned=name == SAVED)
    torch.manual_seed(1)
    before = flags(), of(world.net), of(world.gated), of(world.small)
    others.clear()
    PUBLIC[name](world)
    after = flags(), of(world.net), of(world.gated), of(world.small)
    for was, now in zip(before, after, strict=True):
        for key, value in was.items():
            assert now[key] == value, key
    assert others == []


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def medium() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for part in ("matmul", "conv", "rnn"):
            getattr(torch.backends.mkldnn, part).fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"  # type: ignore[attr-defined]


@contextmanager
def another_seed() -> Iterator[None]:
    torch.manual_seed(99)
    yield


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "another seed": another_seed,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "float64": default_dtype,
    "meta device": lambda: torch.device("meta"),
    "TF32": medium,
}
RESULTS = ["prune", "prune, new weights", SAVED, "train", "prune_finetune", "load", "deploy", "count"]


def values(result: object) -> list[Tensor]:
    return list(result.state_dict().values()) if isinstance(result, nn.Module) else [torch.tensor(hash(result))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """What a caller gets that has set nothing."""
    worlds = {name: World(tmp_path_factory.mktemp("plain"), pruned=name == SAVED) for name in RESULTS}
    return {name: values(PUBLIC[name](world)) for name, world in worlds.items()}


PAIRS = [
    pytest.param(name, setting, marks=() if name in ("prune", "load") or setting == "autocast" else pytest.mark.full)
    for name in RESULTS
    for setting in SETTINGS
]


@pytest.mark.parametrize(("name", "setting"), PAIRS)
def test_a_callers_settings_change_nothing(
    name: str, setting: str, tmp_path: Path, plain: dict[str, list[Tensor]]
) -> None:
    world = World(tmp_path, pruned=name == SAVED)
    with SETTINGS[setting]():
        result = PUBLIC[name](world)
    for expected, found in zip(plain[name], values(result), strict=True):
        assert found.equal(expected)


def test_a_callers_own_training_runs_as_the_caller_has_set_everything(tmp_path: Path) -> None:
    world, seen = World(tmp_path), []

    def own(module: nn.Module) -> None:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.rand(2)))

    with torch.autocast("cpu", torch.bfloat16), default_dtype():
        torch.manual_seed(3)
        expected, after = torch.rand(2), torch.get_rng_state()
        torch.manual_seed(3)
        hybridprune.prune(world.net, world.loader, target_flops=0.6, curvature=QUICK, cut=UNFITTED, fine_tune=own)
        assert torch.get_rng_state().equal(after)
    ((autocast, dtype, drawn),) = seen
    assert autocast and dtype == torch.float64 and drawn.equal(expected)


def test_networks_that_count_on_the_default_type_are_pruned() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).relu().mean((2, 3)) @ torch.eye(8))

    with default_dtype():
        loader = DataLoader(TensorDataset(torch.rand(16, 3, 8, 8), LABELS[:16]), batch_size=8)
        pruned = hybridprune.prune(Double(), loader, target_flops=0.7, curvature=QUICK, cut=UNFITTED, fine_tune=1)
        assert {value.dtype for value in pruned.module.parameters()} == {torch.float64}


class Gpu:
    """Two generators that stand for those of two GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.generators = [torch.Generator().manual_seed(number) for number in (10, 11)]
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "default_generators", tuple(self.generators))
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: self.generators[device.index or 0].get_state())
        monkeypatch.setattr(
            torch.cuda, "set_rng_state", lambda state, device: self.generators[device.index or 0].set_state(state)
        )

    def states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self.generators]


@pytest.mark.parametrize("index", [None, 0, 1])
def test_only_the_devices_own_generator_is_seeded_and_it_goes_on_as_before(
    index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(monkeypatch)
    own = index or 0
    before, cpu = gpu.states(), torch.get_rng_state()
    device = torch.device("cuda" if index is None else f"cuda:{index}")
    drawn = []
    for _ in range(2):
        with seeded(3, device):
            drawn.append((torch.rand(4), torch.rand(4, generator=gpu.generators[own])))
            assert gpu.states()[1 - own].equal(before[1 - own])
    assert drawn[0][0].equal(drawn[1][0]) and drawn[0][1].equal(drawn[1][1])
    assert all(now.equal(was) for now, was in zip(gpu.states(), before, strict=True))
    assert torch.get_rng_state().equal(cpu)
    reseed(3, device)
    assert torch.rand(4, generator=gpu.generators[own]).equal(drawn[0][1]) and torch.rand(4).equal(drawn[0][0])
    assert gpu.states()[1 - own].equal(before[1 - own])


def test_generators_go_on_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), isolated(4):
        torch.rand(1)
        raise KeyError
    assert torch.get_rng_state().equal(before)


def test_new_weights_leave_all_generators_alone(others: list[str]) -> None:
    net, before = random_net(8), torch.get_rng_state()
    others.clear()
    initialise(net, 0, "cut")
    assert torch.get_rng_state().equal(before) and others == []


def test_generators_are_seeded_and_kept_in_one_place() -> None:
    """`torch.manual_seed` reaches the generators of all devices, and `fork_rng` of the CPU alone keeps one of them."""
    package = Path(hybridprune.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "ambient.py":
            assert "torch.manual_seed(" not in path.read_text() and "fork_rng" not in path.read_text(), path
