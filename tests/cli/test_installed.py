"""A wheel, installed into an empty environment: the command works without the repository."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from hybridprune.commands.door import COMMANDS
from hybridprune.version import __version__
from tests import ROOT
from tests.report.run_folders import write_lineage

pytestmark = pytest.mark.full
TINY = ("--network", "resnet", "--depth", "8", "--width", "4", "--device", "cpu", "--max_train_samples", "200")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and sees the other packages of this one behind it."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("hybridprune", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            copytree(ROOT / name, source / name, ignore=ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([*pip, *build, source], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("hybridprune-*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *install], check=True, capture_output=True, text=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    others = [path for path in map(Path, [*site.getsitepackages(), *sys.path]) if path.name == "site-packages"]
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(others)))
    return folder / "venv"


@pytest.fixture
def command(environment: Path, tmp_path: Path) -> Command:
    """``hybridprune`` of the environment, in an empty folder."""
    settings = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | settings

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        program = [str(environment / "bin" / "hybridprune"), *map(str, words)]
        return subprocess.run(program, cwd=tmp_path, env=clean, capture_output=True, text=True)

    return run


def test_help_and_version(command: Command, environment: Path) -> None:
    shown = command("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: hybridprune COMMAND") and all(name in shown.stdout for name in COMMANDS)
    assert command("--version").stdout == f"hybridprune {__version__}\n"
    where = [environment / "bin" / "python", "-c", "import hybridprune; print(hybridprune.__file__)"]
    found = subprocess.run(where, cwd=environment, capture_output=True, text=True, check=True, env={}).stdout
    assert Path(found.strip()).is_relative_to(environment)


def test_metadata_is_that_of_a_package_index(environment: Path) -> None:
    (info,) = environment.glob("lib/python*/site-packages/hybridprune-*.dist-info")
    metadata = Distribution.at(info).metadata
    assert metadata["Version"] == __version__ and metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown" and "pruning" in metadata["Description"]
    assert metadata["Keywords"] and "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert (info.parent / "hybridprune" / "py.typed").is_file()
    assert not (info.parent / "tests").exists()


def test_a_stage_and_the_whole_demo(command: Command, tmp_path: Path) -> None:
    trained = command("train", "--dataset", "digits", "--resize", "8", "--epochs", "1", *TINY)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "results/default/digits-resnet8-w4-sp-seed0/result.json").is_file()
    demo = command("demo", "shown", *TINY)
    assert demo.returncode == 0, demo.stderr
    assert all(f"| {row} |" in demo.stdout for row in ("without pruning", "static only", "static + dynamic"))
    assert "<html" in (tmp_path / "shown/report.html").read_text()
    again = command("demo", "shown", *TINY)
    assert (again.returncode, again.stdout.count("| static only |")) == (0, 2)


@pytest.mark.exhaustive
def test_a_sweep_needs_no_repository(command: Command, tmp_path: Path) -> None:
    grid = '{"common": {"dataset": "digits", "resize": 8, "depth": 8, "width": 4, "max_train_samples": 200}, "sp": {'
    (tmp_path / "grid.json").write_text(grid + '"epochs": 1, "device": "cpu"}, "prune": {"epochs_start": 0, '
    '"epochs_end": 0, "target_flops": 0.6, "curvature_images": 64, "moment_images": 64, "device": "cpu"}}')  # fmt: skip
    done = command("grid", "grid.json")
    logs = [path.read_text() for path in (tmp_path / "results" / "logs").glob("*.log")]
    assert done.returncode == 0, (done.stderr, logs)
    assert len(list((tmp_path / "results").glob("default/*/result.json"))) == 2


def test_a_report_needs_no_matplotlib(environment: Path, tmp_path: Path) -> None:
    write_lineage(tmp_path)
    program = "import sys; sys.modules['matplotlib'] = None; from hybridprune.__main__ import main; sys.exit(main())"
    report = [environment / "bin" / "python", "-c", program, "report", tmp_path]
    done = subprocess.run(report, cwd=tmp_path, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "| static" in done.stdout
    done = subprocess.run([*report, "--plot", "plot.png"], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "pip install 'matplotlib'" in done.stderr
