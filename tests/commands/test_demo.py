"""``hybridprune demo``: where it refuses to work, and that it is what it is without a ``config.json``."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridprune.commands import demo
from hybridprune.config import PruneConfig, resolve, to_json
from hybridprune.errors import UserError
from tests import ROOT


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"FOLDER .*: holds thesis.tex"):
        demo.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"FOLDER .*: cannot be read"):
        demo.main([str(tmp_path / "file")])


def test_its_cut_is_that_of_the_published_settings() -> None:
    words = [*demo.PRUNE.split(), *demo.COMMON.split()]
    without, published = (
        to_json(resolve(PruneConfig(), words, prog="", description="", config_path=path).config)
        for path in (None, str(ROOT / "config.json"))
    )
    assert without == published | {"data_dir": None}
