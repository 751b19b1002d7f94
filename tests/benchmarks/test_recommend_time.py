"""benchmarks/recommend_time.py: all groups that fit are searched and two are fitted."""

from __future__ import annotations

import pytest

from benchmarks.recommend_time import main


@pytest.mark.full
def test_it_says_how_many_groups_took_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--networks", "4", "--images", "60"])
    assert capsys.readouterr().out.startswith("6 pairs and triples: ")
