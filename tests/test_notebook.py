"""The notebook runs, and what it ships with is whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cases import ROOT

NOTEBOOK = ROOT / "notebooks/results.ipynb"
TINY = {"arch": "resnet8-w4", "epochs": 1, "shares": [0.5], "batch_size": 200}


def outputs(notebook: Any, kind: str) -> list[str]:
    """All that its cells show of one kind."""
    shown = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in shown if output["output_type"] == "error"]
    found = [output["data"][kind] for output in shown if kind in output.get("data", {})]
    return ["".join(content) for content in found]


def accuracies(notebook: Any) -> dict[str, list[float]]:
    """What its table says, by method."""
    (table,) = outputs(notebook, "text/markdown")
    rows = re.findall(r"^\| (rni|l1|ucs) \|(.*)\|$", table, flags=re.MULTILINE)
    return {method: [float(each) for each in re.findall(r"([\d.]+)% \(", cells)] for method, cells in rows}


def test_the_shipped_outputs_are_of_one_run_of_all_cells() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {method: len(found) for method, found in accuracies(notebook).items()} == {"rni": 3, "l1": 3, "ucs": 3}
    assert len(outputs(notebook, "image/png")) == 1


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_it_runs_on_small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    for name, value in (
        ("RESULTS_SETTINGS", json.dumps(TINY)),
        ("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"),
        ("OMP_NUM_THREADS", "1"),
        ("IPYTHONDIR", str(tmp_path / "ipython")),
        ("MPLCONFIGDIR", str(tmp_path / "matplotlib")),
    ):
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    found = accuracies(notebook)
    assert found.keys() == {"rni", "l1", "ucs"} and all(len(each) == 2 for each in found.values())
    assert all(0 <= accuracy <= 100 for each in found.values() for accuracy in each)
    assert len(outputs(notebook, "image/png")) == 1
