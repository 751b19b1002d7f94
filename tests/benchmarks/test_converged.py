"""benchmarks/converged.py: arms of a tiny network on the digits, resumed trainings, and the tables of the lines."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import converged
from benchmarks.converged import (
    DENSE,
    METHODS,
    OPTIONS,
    OURS,
    PEERS,
    SCRATCH,
    Bench,
    Cell,
    command,
    main,
    parser,
    recipe_of,
    wanted,
)
from benchmarks.converged_plot import plot, points
from benchmarks.converged_tables import cell_table, headline, published_table, recipe_table, reported, show, whole
from benchmarks.peers import IMPORTANCES, largest, torch_pruned
from benchmarks.recipe import BenchImages, Recipe, Teacher, train
from benchmarks.results_log import Line, find_line, pack, read_lines
from hybridprune.config import DataOptions
from hybridprune.engine.run_data import load_images
from hybridprune.measure.cost import count_module
from hybridprune.models.spec import NetworkSpec

RECIPE = Recipe("short", lr=0.01, precision="fp32")
CELL = Cell(8, 0.6)


def network(width: int) -> nn.Module:
    """A ResNet-8 for ten classes whose BatchNorm scales differ from each other."""
    torch.manual_seed(0)
    net = NetworkSpec("resnet", 8, width, 10).build().backbone
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    return net.eval()


def images() -> BenchImages:
    dataset = load_images(DataOptions(dataset="digits", resize=8))
    return BenchImages(dataset, dataset.mean, dataset.std)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Weights of a ResNet-8 of width 4, as a file."""
    monkeypatch.setattr(converged, "WIDTH", 4)
    torch.save(network(4).state_dict(), tmp_path / "cifar100_resnet8.pth")
    return Bench(images(), tmp_path, tmp_path / "work")


def test_the_parts_of_the_test_images_are_fixed_and_cover_all_classes() -> None:
    found = images()
    parts, labels = found.parts, found.dataset.test.labels
    assert torch.equal(torch.cat([parts.train, parts.validation]).sort().values, torch.arange(len(labels)))
    assert torch.equal(parts.validation, found.parts.validation)
    shares = labels[parts.validation].bincount() / labels.bincount()
    assert len(shares) == 10 and bool((shares > 0.1).all()) and bool((shares < 0.3).all())


@pytest.mark.full
def test_peers_keep_within_the_budget() -> None:
    net = network(8)
    example = torch.zeros(1, 3, 8, 8)
    pairs = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for importance in IMPORTANCES:
        pruned = torch_pruned(net, importance, 0.5, example, pairs)
        share = count_module(pruned, example)[0] / count_module(net, example)[0]
        assert 0.3 < share <= 0.5, importance
        assert all(parameter.grad is None and parameter.requires_grad for parameter in pruned.parameters())
        assert pruned(example).shape == (1, 10)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_largest_network_within_a_budget_is_taken() -> None:
    def at(ratio: float) -> torch.nn.Module:
        return torch.nn.Linear(1000 - int(1000 * ratio) or 1, 1)

    found: Any = largest(at, lambda net: next(net.parameters()).numel() <= 370)
    assert found.in_features == 370
    assert largest(at, lambda net: False) is None


@pytest.mark.exhaustive
@pytest.mark.full
def test_every_arm_gives_a_line(bench: Bench) -> None:
    for method in METHODS:
        line = bench.run(CELL, method, 0, RECIPE, 0)
        assert 0.3 < line["share"] <= 0.6 and 0 <= line["report"] <= 1 and line["params_share"] < 1, method
        assert np.isclose(reported(line).mean(), line["report"]) and len(reported(line)) == line["images"][1]
    scratch, uniform = (bench.cut(CELL, method, 0) for method in (SCRATCH, "uniform"))
    assert count_module(scratch, torch.zeros(1, 3, 8, 8)) == count_module(uniform, torch.zeros(1, 3, 8, 8))
    assert not torch.equal(scratch.state_dict()["conv.weight"], uniform.state_dict()["conv.weight"])


@pytest.mark.full
def test_a_training_that_was_killed_ends_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run = bench.cut(CELL, "bn-scale", 0)
    teacher, path = Teacher(bench.dense(8), bench.work / "teacher"), bench.work / "a.pt"
    losses = train(whole_run, teacher, bench.images, RECIPE, 2, 0, path)
    assert len(losses) == 2 and losses[1] < losses[0]

    killed = bench.cut(CELL, "bn-scale", 0)
    batches, calls = bench.images.training(0, RECIPE.batch_size), []

    def epoch(number: int) -> Any:
        calls.append(number)
        if number == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return type(batches).epoch(batches, number)

    monkeypatch.setattr(batches, "epoch", epoch)
    monkeypatch.setattr(BenchImages, "training", lambda *_: batches)
    with pytest.raises(KeyboardInterrupt):
        train(killed, teacher, bench.images, RECIPE, 2, 0, bench.work / "b.pt")
    resumed = bench.cut(CELL, "bn-scale", 0)
    assert train(resumed, teacher, bench.images, RECIPE, 2, 0, bench.work / "b.pt") == losses
    assert calls == [0, 1, 1]
    wanted = whole_run.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())
    other = dataclasses.replace(RECIPE, lr=0.02)
    with pytest.raises(ValueError, match="another --work"):
        train(resumed, teacher, bench.images, other, 2, 0, bench.work / "b.pt")


def test_the_teacher_sees_what_the_student_sees(bench: Bench) -> None:
    net, folder, batches = bench.dense(8), bench.work / "teacher", bench.images.training(0, 128)
    images = len(bench.images.dataset.train)
    taught = Teacher(net, folder).outputs(batches, 3, "fp32", images)
    for batch in bench.images.training(0, 128).epoch(3):
        assert torch.equal(taught[batch.ids], net(batch.images))
    broken = nn.Identity()
    assert torch.equal(Teacher(broken, folder).outputs(batches, 3, "fp32", images), taught)
    for other in (
        Teacher(net, folder).outputs(batches, 4, "fp32", images),
        Teacher(net, folder).outputs(bench.images.training(1, 128), 3, "fp32", images),
    ):
        assert taught.shape == other.shape and not torch.allclose(taught, other)


@pytest.mark.full
def test_what_is_recorded_is_not_run_again(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converged, "load_images", lambda options: bench.images.dataset)
    results = tmp_path / "lines.jsonl"
    argv = ["--weights", str(tmp_path), "--work", str(tmp_path / "work"), "--results", str(results), "--published", "8"]
    argv += ["--cells", "8:0.6", "--methods", "bn-scale", "uniform", "--epochs", "0", "1", "--precision", "fp32"]
    main(argv)
    lines = read_lines(results)
    assert [(x["method"], x["epochs"], x["recipe"]) for x in lines] == [
        (DENSE, 0, ""), ("bn-scale", 0, ""), ("uniform", 0, ""), ("bn-scale", 1, "default"), ("uniform", 1, "default"),
    ]  # fmt: skip
    assert lines[3]["recipe_options"]["lr"] == 0.03 and len(lines[0]["weights_sha256"]) == 64
    main(argv)
    assert read_lines(results) == lines
    main([*argv, "--lr", "0.01", "--recipe", "slow"])
    assert [(x["recipe"], x["recipe_options"]["lr"]) for x in read_lines(results)[5:]] == 2 * [("slow", 0.01)]


def line(method: str, report: np.ndarray, **more: Any) -> Line:
    shared = {"network": "resnet32", "target": 0.5, "seed": 0, "recipe": "", "epochs": 0, "share": 0.5}
    calibration = report[:40]
    size = {"params_share": 0.4, "macs": 50, "params": 40, "images": [len(calibration), len(report)]}
    accuracy = {"calibration": calibration.mean(), "report": report.mean()}
    bits = {"calibration_correct": pack(calibration), "report_correct": pack(report)}
    return {"method": method, **shared, **size, **accuracy, **bits, **more}


def right(share: float) -> np.ndarray:
    return np.arange(200) < 200 * share


def test_the_table_has_seeds_differences_and_the_smaller_network() -> None:
    tuned = {"recipe": "default", "epochs": 3}
    lines = [
        line(OURS, right(0.6)),
        line(OURS, right(0.7), **tuned),
        line(OURS, right(0.74), **tuned, seed=1),
        line("taylor", right(0.1)),
        line("taylor", right(0.5), **tuned),
        line("uniform", right(0.72), **tuned),
        line("uniform", right(0.72), **tuned, seed=1),
    ]
    parent, smaller = (
        line(DENSE, right(0.8), macs=100, params=100),
        line(DENSE, right(0.65), network="resnet20", macs=49),
    )
    text = cell_table(lines, parent, [smaller])
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.strip().splitlines()]
    assert rows[0][3:5] == ["After the cut %", "3 epochs %"]
    assert [row[0] for row in rows[2:]] == [OURS, "uniform", "taylor", "resnet20, published: 65.00"]
    assert rows[2][3:] == ["60.00", "72.00 +- 2.83 (2)", ""]
    assert rows[3][3:5] == ["", "72.00 +- 0.00 (2)"] and rows[3][5].startswith("+0.00 [-")
    assert rows[3][5].endswith(" (not beaten)")
    assert rows[4][3:5] == ["10.00", "50.00"] and rows[4][5].startswith("+20.00 [+1")
    assert rows[5][5].startswith("+7.00 [")  # the mean of both seeds against 65 %
    assert "| resnet20 |" in published_table([parent, smaller])


def test_the_headline_goes_down_in_cost_and_the_recipes_stand_beside_each_other() -> None:
    cut = {"network": "resnet56", "target": 0.32}
    tuned = {**cut, "recipe": "default", "recipe_options": {"lr": 0.03}}
    lines = [
        line(DENSE, right(0.8), network="resnet56", macs=100_000_000),
        line(DENSE, right(0.7), network="resnet20", macs=40_849_000),
        line(OURS, right(0.6), **cut, macs=40_810_000),
        line("bn-scale", right(0.1), **cut, macs=40_849_500),
        line("bn-scale", right(0.9), **cut, macs=40_849_500, budget="params"),
        *(line(OURS, right(share), **tuned, epochs=10, seed=seed) for seed, share in enumerate((0.7, 0.8))),
        line(OURS, right(0.5), **tuned, epochs=3, calibration=0.5),
        line("bn-scale", right(0.4), **tuned, epochs=3, calibration=0.6),  # the default alone: nothing was tried
        line(OURS, right(0.4), **tuned | {"recipe": "slow", "recipe_options": {"lr": 0.01}}, epochs=3, calibration=0.4),
    ]
    body = [[cell.strip() for cell in row.strip("|").split("|")] for row in headline(lines).splitlines()[2:]]
    assert body[0] == ["ResNet-56, as published", "100.0", "80.00", ""]
    assert body[1] == ["ResNet-20, as published", "40.8", "70.00", ""]
    assert body[2] == ["ResNet-56 to 0.32: `fisher-tucker`", "40.8", "60.00", "75.00 +- 7.07 (2)"]
    assert body[3][2:] == ["10.00", ""] and len(body) == 4
    (row,) = recipe_table(lines).splitlines()[2:]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["ResNet-56 at 0.32", OURS, "3", "40.00", "50.00"]


def test_budgets_of_flops_and_of_parameters_are_cells_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    flops, params = Cell.of("32:0.5"), Cell.of("32:0.5:params")
    assert (str(flops), str(params)) == ("32:0.5", "32:0.5:params") and flops != params
    assert Cell.of(str(params)) == params
    with pytest.raises(ValueError, match="bytes"):
        Cell.of("32:0.5:bytes")
    lines = [line("taylor", right(0.3)), line("taylor", right(0.4), budget="params")]
    for cell, found in ((flops, lines[0]), (params, lines[1])):
        assert find_line(lines, **cell.key("taylor", 0)) is found
    arguments = parser().parse_args(["--published", "--cells", "32:0.5:params", "--epochs", "0"])
    assert {method for _, method, _ in wanted(arguments)} == set(METHODS) - set(PEERS)
    show(lines)
    shown = capsys.readouterr().out
    assert "resnet32 cut to 50% of its FLOPs" in shown and "resnet32 cut to 50% of its parameters" in shown


@pytest.mark.full
def test_parameters_are_cut_to_their_budget(bench: Bench) -> None:
    flops, params = (bench.run(Cell(8, 0.6, budget), OURS, 0, RECIPE, 0) for budget in ("flops", "params"))
    assert 0.59 < flops["share"] <= 0.6 and 0.59 < params["params_share"] <= 0.6
    assert flops["params_share"] != params["params_share"]


def test_accuracy_on_all_images_weighs_the_parts() -> None:
    assert whole(line("taylor", right(0.5))) == pytest.approx((40 * 1 + 200 * 0.5) / 240)


@pytest.mark.parametrize(("method", "epochs"), [(DENSE, 0), ("taylor", 0), (SCRATCH, 3), (next(iter(PEERS)), 1)])
def test_the_command_of_a_line_asks_for_that_line_alone(method: str, epochs: int) -> None:
    recipe = Recipe("slow", lr=0.01, kd_weight=0.5)
    cell = Cell(32, 1.0 if method == DENSE else 0.59)
    argv = shlex.split(command(cell, method, epochs, 4, recipe))
    assert argv[:3] == ["python", "-m", "benchmarks.converged"]
    arguments = parser().parse_args(argv[3:])
    assert list(wanted(arguments)) == [(cell, method, epochs)]
    if epochs:
        assert arguments.seed == 4 and recipe_of(arguments) == recipe


def test_the_peers_and_cells_that_are_named_exist() -> None:
    assert set(OPTIONS) < set(METHODS) and set(PEERS) < set(METHODS) and set(PEERS.values()) == set(IMPORTANCES)
    defaults = parser().parse_args([])
    assert [(cell.depth, cell.target) for cell in defaults.cells][:2] == [(32, 0.5), (56, 0.32)]
    assert defaults.lr == Recipe.lr and defaults.published == [20, 32, 44, 56]


def test_the_picture_shows_means_over_seeds_of_the_default_recipe(tmp_path: Path) -> None:
    tuned = {"recipe": "default", "epochs": 10, "macs": 50_000_000}
    lines = [line(OURS, right(share), **tuned, seed=seed) for seed, share in enumerate((0.6, 0.7))]
    lines += [line(OURS, right(0.9), **{**tuned, "recipe": "other"}), line(OURS, right(0.9), **tuned, budget="params")]
    assert points(lines, OURS, 10) == [(50.0, pytest.approx(65.0))] and points(lines, OURS, 0) == []
    sizes = {20: 30, 32: 50, 44: 70, 56: 90}
    dense = [line(DENSE, right(0.7), network=f"resnet{n}", macs=10**6 * macs) for n, macs in sizes.items()]
    assert [macs for macs, _ in points(dense[::-1], DENSE, 0)] == list(sizes.values())
    plot([*dense, *lines, line(OURS, right(0.5)), line("taylor", right(0.2), macs=50_000_000)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
