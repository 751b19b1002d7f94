"""The README's and the pages' commands are real: every flag is known, every value is accepted, every path exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from benchmarks.cascade_tables import all_tables as cascades
from benchmarks.converged import Cell
from benchmarks.converged_tables import OURS, all_tables
from benchmarks.peers_clock import PEER, SHOWN, Arm, accuracies
from benchmarks.results_log import read_lines
from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.config.methods import METHOD_NAMES
from hybridprune.data.tree import load_tree
from hybridprune.pruning.method import DirectionMethod
from hybridprune.pruning.methods import find
from tests import ROOT
from tests.docs.pages import command_help, tables
from tests.processes import run_forked

STAGES = {"main_sp.py": SpConfig(), "main_prune.py": PruneConfig(), "main_rl_prune.py": RlConfig()}
SOONER = {"main_sp.py": ("--epochs", "2"), "main_prune.py": ("--epochs_start", "1", "--epochs_end", "1")}
"""Epochs in the place of those that a command asks for."""


README = (ROOT / "README.md").read_text()
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}


def commands(*pages: str) -> list[list[str]]:
    """Every command of the shell blocks, continuation lines joined, variables put in, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(pages), flags=re.DOTALL)
    lines: list[str] = []
    for block in blocks:
        for name, value in re.findall(r'^([A-Z]+)="(.*)"$', block, flags=re.MULTILINE):
            block = block.replace(f"${name}", value)
        lines += block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_the_readme_shows_all_stages_and_commands() -> None:
    shown = {word for command in commands(README) for word in command[:3]}
    assert set(STAGES) <= shown
    assert {"demo", "test"} <= shown
    assert {"report", "evaluate"} <= {command[1] for command in commands(README) if command[0] == "hybridprune"}


def test_the_readme_counts_the_methods() -> None:
    directions = [name for name in METHOD_NAMES if isinstance(find(name), DirectionMethod)]
    assert f"**{len(METHOD_NAMES)} methods" in README
    assert f"with the {len(directions)} methods that cut directions, `{directions[0]}` (the default) and" in README
    assert f"`{directions[1]}`" in README and f"The other {len(METHOD_NAMES) - 2} cut channels" in README


@pytest.mark.exhaustive
@pytest.mark.full
def test_the_three_stages_run_one_after_the_other_and_each_figure_of_an_epoch_is_explained(tmp_path: Path) -> None:
    shutil.copy(ROOT / "config.json", tmp_path)
    section = README.split("## The three stages")[1].split("\n## ")[0]
    blocks = "python main_rl_prune.py --dataset digits --depth 8 --width 8 --epochs 2 --target_flops 0.45"
    for command in [*commands(section), blocks.split()]:
        words = command[1:] if command[0] == "python" else command
        if "RUN" in words:
            (words[words.index("RUN")],) = map(str, (tmp_path / "results").glob("*/*-cascade-*-rl-*"))
        done = run_forked(*words, *SOONER.get(words[0], ()), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.html").is_file()
    lines = [line for run in (tmp_path / "results").glob("*/*/metrics.jsonl") for line in read_lines(run)]
    figures = {name for line in lines for name in line if name.startswith(("train_", "validation_"))}
    assert {"train_loss", "train_price", "validation_budget_flops_share"} <= figures
    assert {name for name in figures if f"`{name}`" not in PAGES["docs/three_stages.md"]} == set()


def test_the_page_makes_image_folders_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tiny(list[tuple[Image.Image, int]]):
        classes = ("cloud", "sea")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert root == "data" and download
            super().__init__((Image.new("RGB", (8, 8), (60 * label, 99, 3)), label) for label in (1, 0, 1)[: 2 + train])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Tiny)
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["docs/three_stages.md"], flags=re.DOTALL)
    exec(code, {})
    data = load_tree("data/cifar_100", img_type="png", resize=8, num_workers=0, cache_dir=str(tmp_path / "cache"))
    assert data.classes == ("cloud", "sea")
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "command", [c for c in commands(README, *PAGES.values()) if c[0] == "python" and c[1] in STAGES], ids=" ".join
)
def test_each_stage_command_resolves(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    resolved = resolve(STAGES[command[1]], command[2:], prog=command[1], description="", config_path=None)
    assert resolved.config != STAGES[command[1]]


@pytest.mark.parametrize(
    "words", sorted({" ".join(c[1:]) for c in commands(README, *PAGES.values()) if c[0] == "hybridprune"})
)
def test_each_installed_command_is_known_with_its_flags(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *given = words.split(" ")
    if name.isupper():  # COMMAND stands for any
        return
    monkeypatch.chdir(ROOT)
    helped = "--help-all" if name in tables().STAGE_COMMANDS else "--help"
    known = command_help(name, helped)
    for flag in (word for word in given if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known) or flag in ("--help", "--help-all"), flag


def test_make_targets_and_linked_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(README):
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, flags=re.MULTILINE), command
    for link in re.findall(r"\]\(([^)h][^)]*)\)", (ROOT / "README.md").read_text()):
        file, _, anchor = link.partition("#")
        assert (ROOT / file).exists(), link
        headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(), flags=re.MULTILINE) if anchor else []
        assert not anchor or anchor in {
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
        }, link
    assert (ROOT / "benchmarks/checkpoints/cifar100_resnet32_w16_sp.safetensors").is_file()


def test_the_shipped_config_holds_all_published_keys_and_only_available_values() -> None:
    published = """result_dir data_dir img_type checkpoint_file batch_size resize num_workers momentum weight_decay
        scheduler_id scheduler_params lr log_interval network depth epochs_start epochs_end max_iter normalize pruner_id
        prune_ratio_limit prune_ratio use_out_dependencies use_bias fisher_type allow_increase regularization ma sua
        correct_eigenvalues use_full_cov_a decomp_method pool_momentum back_ratio alpha interpolation exp_name"""
    path = ROOT / "config.json"
    assert set(published.split()) <= json.loads(path.read_text()).keys()
    config = resolve(PruneConfig(), ["--config_path", str(path)], prog="", description="").config
    assert config.cut.target_flops == 0.25
    assert resolve(SpConfig(), ["--config_path", str(path)], prog="", description="").config.network.width == 64
    assert resolve(RlConfig(), ["--config_path", str(path)], prog="", description="").config.stage.reward_scale == 0.1


@pytest.mark.full
def test_the_tables_of_trained_networks_are_what_was_measured() -> None:
    tables = dict(all_tables(read_lines(ROOT / "benchmarks/results/converged.jsonl")))
    assert len(tables) >= 7
    for page in (README, PAGES["docs/results.md"]):
        assert tables["headline"].strip() in page
    for title, table in tables.items():
        assert title == "headline" or table.strip() in PAGES["docs/trained_networks.md"], title


@pytest.mark.full
def test_the_tables_of_cascades_are_what_was_measured() -> None:
    tables = dict(cascades(read_lines(ROOT / "benchmarks/results/cascade_arms.jsonl")))
    assert len(tables) == 7
    assert tables["headline"].strip() in README and tables["headline"].strip() in PAGES["docs/results.md"]
    for title, table in tables.items():
        assert title == "headline" or table.strip() in PAGES["docs/cascades.md"], title


def test_the_speeds_are_those_of_the_pages() -> None:
    (faster_than_the_peer,) = re.findall(r"([\d.]+) times as fast\]\(docs/trained_networks.md#by-the-clock\)", README)
    clock = PAGES["docs/trained_networks.md"].split("\n## By the clock")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in clock.splitlines()]
    rows, (head, *_) = {line[0]: line for line in lines}, (line for line in lines if line[0] == "Network")
    column = head.index("onnxruntime, batch 32")
    peer, ours = (float(rows[f"ResNet-32 to 0.59: {method}"][column]) for method in (PEER, OURS))
    assert f"{peer / ours:.1f}" == faster_than_the_peer
    (most,) = re.findall(r"up to ([\d.]+) times\]\(docs/deploy.md#what-was-measured\)", README)
    faster = re.findall(r"([\d.]+) x faster", PAGES["docs/results.md"].split("## By the clock")[1].split("\n## ")[0])
    assert max(map(float, faster)) == float(most)


def test_the_accuracies_beside_times_are_what_was_measured() -> None:
    clock = PAGES["docs/trained_networks.md"].split("\n## By the clock")[1]
    lines = read_lines(ROOT / "benchmarks/results/converged.jsonl")
    rows = re.findall(r"^\| ResNet-(\d+) to ([\d.]+): ([^|]*?) \| [\d.]+ \| ([^|]*?) ?\|", clock, re.MULTILINE)
    shown = {name.partition(" ")[2] for name in SHOWN}
    assert len(rows) >= 10 and {method for _, _, method, _ in rows} <= shown
    for depth, target, method, accuracy in rows:
        found = Arm("", nn.Identity(), method, accuracies(lines, Cell(int(depth), float(target)), method))
        assert accuracy == found.percent, (depth, target, method)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.full
def test_the_example_prints_what_stands_below_it(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    code, printed = example
    # A process of its own: the seed and the threads are the reader's.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def environment() -> dict[str, str]:
    """One in which the package of this checkout is found from any folder."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
