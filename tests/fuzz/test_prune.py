"""``hybridprune.prune`` with arguments that nobody has thought of: a result that keeps its promise, or one line."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.config.methods import METHOD_NAMES
from hybridprune.engine.plain import in_single, plain_copy
from hybridprune.errors import RunFailed, UserError
from hybridprune.measure.cost import count_module
from tests.foreign.network import assert_untouched, snapshot
from tests.fuzz.random_networks import BAD_FOOD, CHANNELS, FOOD, PLANS, SIZE, Food, Plan
from tests.fuzz.seeding import fuzzed, tell

SHARES = st.one_of(st.floats(0.4, 1.0), st.sampled_from([0.7, 0.9, None, 0.05, 1.0, 1, 20_000]))
NONSENSE = st.sampled_from(
    [0, 0.0, -1, -0.5, float("nan"), float("inf"), 1e-9, 1e30, 10**400, "0.5", "", True, (0.5,), [], {}, object]
)
METHODS = st.sampled_from(METHOD_NAMES)
CUTS: dict[str, st.SearchStrategy[Any]] = {
    "allocation": st.sampled_from(
        ["auto", "importance", "importance_per_flop", "rate_distortion", "peel", "adapruner"]
    ),
    "prune_ratio": st.floats(0, 1),
    "prune_ratio_limit": st.floats(0, 0.999),
    "exclude": st.sampled_from([(), ("0",), ("*",), ("nothing",), ["0", "1"]]),
    "normalize": st.booleans(),
    "allow_increase": st.booleans(),
    "rank_multiple": st.integers(1, 9),
    "decomp_method": st.sampled_from(["usual", "tucker"]),
    "hooi_sweeps": st.integers(1, 3),
    "refit": st.sampled_from(["cores", "network"]),
    "refit_images": st.sampled_from([0, 1, 5, 1024]),
    "use_out_dependencies": st.booleans(),
    "round_to": st.integers(1, 9),
    "peel_backbone": st.sampled_from(["uniform", "global-gamma"]),
    "peel_pool": st.floats(0, 1),
    "cut_weights": st.sampled_from(["inherit", "scratch"]),
}
CURVATURES: dict[str, st.SearchStrategy[Any]] = {
    "fisher_type": st.sampled_from(["true", "exp"]),
    "curvature_images": st.sampled_from([2, 3, 16, 4096]),
    "moment_images": st.sampled_from([2, 3, 16, 512]),
    "ma": st.floats(0, 0.999),
    "sua": st.booleans(),
    "use_full_cov_a": st.booleans(),
    "use_bias": st.booleans(),
    "correct_eigenvalues": st.booleans(),
    "regularization": st.sampled_from([1e-12, 1e-6, 1.0, 1e6]),
}
REST: dict[str, st.SearchStrategy[Any]] = {
    "target_params": SHARES,
    "fine_tune": st.sampled_from([0, 0.3, 0.5, 1, 1.7]),
    "lr": st.sampled_from([1e-4, 0.02, 1]),
    "kd_weight": st.sampled_from([0, 0.5, 1.0]),
    "seed": st.one_of(st.integers(0, 2**63), st.just(0)),
    "loss": st.sampled_from(["cross_entropy", "bce", "mse"]),
}
SPARSE = SparsityOptions(sparse_epochs=1, greg_interval=1, bcnet_population=4, bcnet_generations=2)
ARGUMENTS = ("target_flops", "method", *REST)


def some(fields: dict[str, st.SearchStrategy[Any]], at_most: int) -> st.SearchStrategy[dict[str, Any]]:
    """A few of the fields, with values."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=at_most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


def _arguments(flops: float | None, method: str, rest: dict[str, Any]) -> dict[str, Any]:
    return {"target_flops": flops, "method": method, **rest}


REASONABLE = st.fixed_dictionaries(
    {
        "plan": PLANS,
        "food": FOOD,
        "arguments": st.builds(_arguments, SHARES, METHODS, some(REST, 3)),
        "cut": some(CUTS, 3),
        "curvature": some(CURVATURES, 3),
    }
)
"""All of it is what the documentation allows, though not always together."""


@st.composite
def mistakes(draw: st.DrawFn) -> dict[str, Any]:
    """The same, with one thing in it that makes no sense."""
    case: dict[str, Any] = draw(REASONABLE)
    place = draw(st.sampled_from(["food", "arguments", "cut", "curvature"]))
    if place == "food":
        return {**case, "food": draw(BAD_FOOD)}
    names = {"arguments": ARGUMENTS, "cut": tuple(CUTS), "curvature": tuple(CURVATURES)}[place]
    name = draw(st.sampled_from(names))
    wrong = {name: draw(NONSENSE.filter(lambda value: name != "fine_tune" or not callable(value)))}
    return {**case, place: case[place] | wrong}


def keeps_its_promise(plan: Plan, food: Food, arguments: dict[str, Any], cut: Any, curvature: Any) -> None:
    """What `prune` gives is as small as was asked for and can be loaded again; or it says in one line why not."""
    tell()
    model = plan.build(0)
    before = snapshot(model)
    generator = torch.get_rng_state()
    pruned: hybridprune.Pruned | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers that are left alone
        try:
            options = {"cut": CutOptions(**cut), "curvature": CurvatureOptions(**curvature), "sparsity": SPARSE}
            pruned = hybridprune.prune(model, food.serve(plan, arguments.get("loss")), **arguments, **options)
        except (UserError, RunFailed) as refused:
            assert str(refused) and "\n" not in str(refused), str(refused)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), generator), "the caller's random numbers"
    if pruned is not None:
        images, *_ = next(iter(food.serve(plan, arguments.get("loss"))))
        assert logits(plain_copy(pruned.module), in_single(images)).isfinite().all()
        met(pruned, model, arguments)
        comes_back(pruned, plan)


def met(pruned: hybridprune.Pruned, model: nn.Module, arguments: dict[str, Any]) -> None:
    """The budget, by a count of one's own."""
    example = torch.zeros(1, CHANNELS, SIZE, SIZE, dtype=next(model.parameters()).dtype)
    (macs, params), dense = count_module(pruned.module, example), count_module(model, example)
    assert (macs, params) == (pruned.spec.macs, pruned.spec.params)
    for wanted, found, whole, unit in (
        (arguments["target_flops"], macs, dense[0], 2),
        (arguments.get("target_params"), params, dense[1], 1),
    ):
        if wanted is not None:
            assert found <= (wanted * whole if wanted <= 1 else wanted / unit), (wanted, found, whole)
    copy.deepcopy(pruned.module).train()(example.repeat(2, 1, 1, 1)).sum().backward()


def comes_back(pruned: hybridprune.Pruned, plan: Plan) -> None:
    """From its folder, into a fresh instance of other weights."""
    with tempfile.TemporaryDirectory() as folder:
        hybridprune.save(pruned, Path(folder) / "saved")
        fresh = hybridprune.restore(Path(folder) / "saved", into=plan.build(1))
    images = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).to(plan.dtype)
    assert torch.equal(logits(fresh, images), logits(pruned.module, images))


@torch.no_grad()
def logits(module: nn.Module, images: Tensor) -> Tensor:
    """In eval mode."""
    return copy.deepcopy(module).eval()(images)


@fuzzed(4)
@given(REASONABLE)
def test_what_is_allowed(case: dict[str, Any]) -> None:
    keeps_its_promise(**case)


@fuzzed(4)
@given(mistakes())
def test_mistakes(case: dict[str, Any]) -> None:
    keeps_its_promise(**case)


@pytest.mark.exhaustive
@pytest.mark.full
@fuzzed(90)
@given(REASONABLE)
def test_much_that_is_allowed(case: dict[str, Any]) -> None:
    keeps_its_promise(**case)


@pytest.mark.full
@fuzzed(90)
@given(mistakes())
def test_many_mistakes(case: dict[str, Any]) -> None:
    keeps_its_promise(**case)
