"""A run folder of a stranger whose files are links: what a command writes does not go through them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.tiny_runs import assert_refused, folder_of, run_here


@pytest.mark.parametrize(
    ("command", "name", "flags"),
    [
        ("hybridprune.sweep", "sweep.json", ()),
        ("hybridprune.bench", "bench.json", ("--rounds", 1, "--threads", 1, "--batch", 1, "--forms", "eager")),
        ("hybridprune.export", "deployed", ()),
        ("hybridprune.export", "deployed/report.txt", ()),
    ],
)
def test_nothing_is_written_through_a_link(
    command: str, name: str, flags: tuple[object, ...], results: Path, tmp_path: Path
) -> None:
    run = folder_of(results, "rl")
    (run / "deployed").mkdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    if name == "deployed":
        (run / name).rmdir()
    else:
        precious = precious / "file"
        precious.write_text("mine")
    (run / name).symlink_to(precious)
    assert_refused(run_here(command, run, "--device", "cpu", *flags), name, "is a link")
    assert precious.read_text() == "mine" if precious.is_file() else not list(precious.iterdir())
