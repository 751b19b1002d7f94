from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hybridprune import processes
from hybridprune.batch import Batch
from hybridprune.curvature import collect_factors, collect_second_moments, eigenbasis
from tests.curvature.oracles import leaves, own_bases, random_batch, residual_net

BATCHES = [Batch(*random_batch(size, seed)) for seed, size in enumerate((4, 3, 5, 4, 2))]
OPTIONS = {
    "channels": {"moving_average": 0.0},
    "offsets": {"moving_average": 0.0, "sua": False},
    "covariance": {"moving_average": 0.0, "sua": False, "use_full_cov_a": True},
    "moving average": {"moving_average": 0.7, "sua": False},
    "traces": {"moving_average": 0.7, "sua": False, "offset_images": 6, "traced_images": 9},
}


def everything(shared: bool) -> dict[str, dict[str, Any]]:
    """All that is collected of the test network, over all batches."""
    model = residual_net()
    factors = {
        kind: collect_factors(model, leaves(model), BATCHES, fisher_type="true", seed=3, shared=shared, **options)
        for kind, options in OPTIONS.items()
    }
    bases = {}
    for name, layer in factors["offsets"].items():
        basis = eigenbasis(layer.input_factor, layer.gradient_factor, layer.offset_factor)
        bases[name] = (basis.q_out, basis.q_in, basis.q_offset)
    moments = collect_second_moments(
        model,
        leaves(model),
        BATCHES,
        bases=bases,
        fisher_type="true",
        seed=4,
        means={name: layer.input_mean for name, layer in factors["offsets"].items()},
        shared=shared,
    )
    found = {f"{kind} {name}": asdict(layer) for kind, layers in factors.items() for name, layer in layers.items()}
    return {**found, **{f"moments {name}": asdict(layer) for name, layer in moments.items()}}


def assert_same(actual: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert actual.keys() == expected.keys()
    for layer, values in expected.items():
        for field, value in values.items():
            found = actual[layer][field]
            if isinstance(value, dict):
                assert_same({layer: found}, {layer: value})
            elif isinstance(value, Tensor):
                assert isinstance(found, Tensor)
                assert (found - value).norm() <= 1e-5 * value.norm(), (layer, field)
            elif value is None:
                assert found is None
            else:
                assert found == pytest.approx(value, rel=1e-5), (layer, field)


def pretend(patch: pytest.MonkeyPatch, rank: int, world: int):
    """Be one of several processes."""
    patch.setattr(processes, "rank", lambda: rank)
    patch.setattr(processes, "count", lambda: world)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batches", [BATCHES, BATCHES[:1]], ids=["all", "one"])
def test_the_sums_of_two_shards_make_the_factors_of_one_process(options, batches, monkeypatch: pytest.MonkeyPatch):
    model = residual_net()

    def factors(shared: bool):
        return collect_factors(model, leaves(model), batches, fisher_type="true", seed=3, shared=shared, **options)

    expected, sent = factors(False), []
    with monkeypatch.context() as patch:
        pretend(patch, 1, 2)
        patch.setattr(dist, "all_reduce", lambda each: sent.append(each.clone()))
        factors(True)
    with monkeypatch.context() as patch:
        pretend(patch, 0, 2)
        patch.setattr(dist, "all_reduce", lambda each: each.add_(sent.pop(0)))
        actual = factors(True)
    assert not sent and (processes.rank(), processes.count()) == (0, 1)
    assert_same(*({name: asdict(layer) for name, layer in each.items()} for each in (actual, expected)))


def run_process(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    assert (processes.rank(), processes.count()) == (0, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(everything(True)))
    dist.destroy_process_group()


@pytest.mark.full
def test_two_processes_both_return_what_one_does(tmp_path: Path):
    spawn(run_process, (2, tmp_path), nprocs=2)
    expected = everything(False)
    for rank in range(2):
        assert_same(pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()), expected)


def test_a_process_runs_its_own_batches_only_if_they_are_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "all_reduce", lambda _: pytest.fail("nothing is summed"))
    model, seen = residual_net(), []

    def forward(images: Tensor) -> Tensor:
        seen.append(len(images))
        return model(images)

    def collect(shared: bool) -> None:
        seen.clear()
        layers = leaves(model)
        collect_second_moments(
            forward, layers, BATCHES, bases=own_bases(layers), fisher_type="exp", seed=0, shared=shared
        )

    pretend(monkeypatch, 1, 3)
    collect(False)
    assert seen == [4, 3, 5, 4, 2]
    monkeypatch.setattr(dist, "all_reduce", lambda _: None)
    collect(True)
    assert seen == [3, 2]
