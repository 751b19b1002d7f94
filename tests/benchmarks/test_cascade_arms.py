"""benchmarks/cascade_arms.py: the arms on made-up networks, tiny ones on the digits, and the tables of the lines."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import cascade_arms, converged
from benchmarks.cascade_arms import (
    ALL,
    ALONE,
    ARMS,
    RANDOM,
    SHUFFLED,
    SINGLE,
    WHOLE,
    main,
    outcome,
    parser,
)
from benchmarks.cascade_choices import Images, Member, Search, costs, groups
from benchmarks.cascade_tables import all_tables, plot
from benchmarks.results_log import Line, pack, read_lines
from hybridprune.models.spec import NetworkSpec
from tests.benchmarks.test_converged import images as digits

CLASSES = 6


@pytest.fixture(scope="module")
def search() -> Search:
    """Networks of rising cost whose mistakes are their own; the cut ones cost less than they are worth."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (3000,), generator=draw)
    hard = 2 * torch.rand(3000, 1, generator=draw)

    def member(name: str, strength: float, macs: int) -> Member:
        noise = torch.randn(3000, CLASSES, generator=draw)
        return Member(name, 4 * (strength * hard * F.one_hot(labels, CLASSES) + noise), macs)

    members = [member("8@0.5", 1.5, 1000), member("14@0.5", 2.0, 2000), member("8", 1.4, 2500), member("14", 2.2, 5000)]
    whole = {3000.0: member("14@0.6x2", 2.1, 2999)}
    return Search(members, Images(labels, torch.arange(1000), torch.arange(1000, 3000)), whole)


def accuracy(found: Any) -> float:
    return float(found.correct.double().mean())


def test_each_arm_keeps_to_the_budget_and_choosing_by_the_margin_pays(search: Search) -> None:
    budget = 3000.0
    found = {arm: outcome(arm, search, budget, 0) for arm in ARMS if arm not in ALONE or arm == WHOLE}
    for arm, each in found.items():
        assert each is not None and len(each.correct) == 2000
        assert each.macs <= budget * (1.03 if arm not in (SINGLE, WHOLE, ALL) else 1), arm
    single, margin, learned = (accuracy(found[arm]) for arm in (SINGLE, "margin", "learned"))
    assert min(margin, learned) > max(accuracy(found[arm]) for arm in (SINGLE, WHOLE, RANDOM, SHUFFLED)) > 0.5
    assert learned > margin - 0.01 and single == pytest.approx(
        max(
            float((x.logits[1000:].argmax(1) == search.images.labels[1000:]).double().mean())
            for x in search.members
            if x.macs <= budget
        )
    )


def test_a_network_that_is_cut_to_the_budget_stands_for_itself(search: Search) -> None:
    found = outcome(WHOLE, search, 3000.0, 0)
    assert found is not None and found.members == ("14@0.6x2",) and found.macs == 2999
    assert outcome(WHOLE, search, 2900.0, 0) is None


def test_dealing_decisions_anew_keeps_their_number_in_all_or_in_each_class(search: Search) -> None:
    margin, random, shuffled = (outcome(arm, search, 3000.0, 0) for arm in ("margin", RANDOM, SHUFFLED))
    assert margin is not None and random is not None and shuffled is not None
    assert margin.members == random.members == shuffled.members
    first = next(x for x in search.members if x.name == margin.members[0]).logits[search.images.report].argmax(1)
    for other in (random, shuffled):
        assert torch.equal(other.stops.bincount(), margin.stops.bincount()) and not torch.equal(
            other.stops, margin.stops
        )
    per_class = [
        [each.stops[first == c].bincount(minlength=3).tolist() for c in range(CLASSES)] for each in (margin, shuffled)
    ]
    assert per_class[0] == per_class[1]


def test_groups_rise_in_cost_hold_a_cut_network_and_fit(search: Search) -> None:
    found = list(groups(search.members, lambda macs: float(macs[0]) <= 2200 <= float(macs[-1])))
    names = {tuple(x.name for x in group) for group in found}
    assert ("8@0.5", "14@0.5") in names and ("8@0.5", "14@0.5", "14") in names
    assert ("8", "14") not in names  # nothing cut
    assert all(a.macs < b.macs for group in found for a, b in itertools.pairwise(group))
    macs = costs(search.members[:2])
    gate = 3 + 5
    assert macs.tolist() == [1000 + gate, 3000 + gate]


@pytest.mark.full
def test_it_runs_on_tiny_networks_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for depth in (8, 14):
        torch.manual_seed(depth)
        torch.save(
            NetworkSpec("resnet", depth, 4, 10).build().backbone.state_dict(), tmp_path / f"cifar100_resnet{depth}.pth"
        )
    monkeypatch.setattr(converged, "WIDTH", 4)
    monkeypatch.setattr(cascade_arms, "OF", 14)
    monkeypatch.setattr("benchmarks.cascade_members.EPOCHS", 1)
    monkeypatch.setattr(cascade_arms, "load_images", lambda options: digits().dataset)
    argv = ["--weights", str(tmp_path), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "a.jsonl")]
    argv += ["--members", "8@0.6", "8", "14", "--budgets", "0.4"]
    monkeypatch.setattr(cascade_arms, "TO_BUDGET", {0.4: "14@0.4x2"})
    main([*argv, "--arms", SINGLE, "margin"])
    main([*argv, "--arms", SINGLE, "learned", WHOLE, ALL])
    lines = read_lines(tmp_path / "a.jsonl")
    assert [line["arm"] for line in lines][:3] == [SINGLE, "margin", "learned"]
    (whole,) = [line for line in lines if line["arm"] == WHOLE]
    assert whole["members"] == ["14@0.4x2"] and whole["share"] == pytest.approx(0.4, abs=0.02)
    assert all(line["share"] <= 0.5 and line["members"] for line in lines)
    again = parser().parse_args(shlex.split(lines[1]["command"])[3:])
    assert (again.budgets, again.arms, again.seed, again.members) == ([0.4], ["margin"], 0, ["8@0.6", "8", "14"])


def test_arms_with_networks_of_their_own_know_their_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--budgets", "0.4", "0.3", "--arms", "shared trunk"])
    assert "--budgets 0.3: gates at blocks and shared trunk have networks for 0.25, 0.4, 0." in capsys.readouterr().err


GAINS = "the best cascade ahead of the best one network"


def line(arm: str, right: float, budget: float = 0.4, seed: int = 0) -> Line:
    correct = np.arange(400) < 400 * right
    return {
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "members": ["8@0.5", "14"],
        "rates": [1.0, 0.25],
        "report": right,
        "choices": right,
        "report_correct": pack(correct),
        "images": [100, 400],
        "share": budget,
    }


def test_tables_have_means_deviations_and_differences(tmp_path: Path) -> None:
    lines = [line(SINGLE, 0.6), line(SINGLE, 0.7, seed=1), line("margin", 0.75), line("margin", 0.85, seed=1)]
    lines += [line(SINGLE, 0.5, 0.55), line(WHOLE, 0.4, 0.55)]
    tables = dict(all_tables(lines))
    assert list(tables) == ["headline", GAINS, "all budgets", "budget 0.4", "budget 0.55"]
    assert "| the best one network | 65.00 +- 7.07 (2) | 50.00 |" in tables["headline"]
    assert "margin" not in tables["headline"]
    (better,) = [row for row in dict(all_tables([*lines, line(WHOLE, 0.66)]))["headline"].splitlines() if "one" in row]
    assert "66.00 | 50.00" in better
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in tables["all budgets"].splitlines()]
    assert rows[0][1:] == ["0.4 of the FLOPs", "0.55 of the FLOPs"]
    assert rows[2] == [SINGLE, "65.00 +- 7.07 (2)", "50.00"] and rows[3] == ["margin", "80.00 +- 7.07 (2)", ""]
    (_, _, _, row) = tables["budget 0.4"].strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == ["8@0.5 (100 %) -> 14 (25 %)", "0.400"] and cells[4].startswith("+15.00 [+")
    # At 0.4 the single network that was cut to the budget is the better one; at 0.55 there is no cascade.
    learned = [line(WHOLE, 0.7), line("learned", 0.75), line("learned", 0.85, seed=1)]
    (_, _, row) = dict(all_tables([*lines, *learned]))[GAINS].strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["0.4", "8@0.5", "70.00", "80.00 +- 7.07 (2)"] and cells[4].startswith("+10.00 [+7.")
    plot(lines, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
