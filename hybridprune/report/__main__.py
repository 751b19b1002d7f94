"""``python -m hybridprune.report RESULTS``: a table, and if wanted a plot, of finished runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hybridprune.errors import UserError, run_command
from hybridprune.report.formats import FORMATS, render
from hybridprune.report.records import read_runs, unfinished_runs
from hybridprune.report.rows import build_rows
from hybridprune.store.files import write_bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    about = "Tables and plots of every finished run below a folder."
    parser = argparse.ArgumentParser(prog="python -m hybridprune.report", description=about)
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder searched for runs at any depth")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the table to FILE, not to stdout")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="accuracy over GFLOPs (.png or .svg)")
    args = parser.parse_args(argv)
    return run_command(lambda: _report(args.results, args.format, args.output, args.plot))


def _report(results: Path, format: str, output: Path | None, plot: Path | None) -> None:
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {plot}: unknown kind of file; end its name in .png or .svg")
    if unfinished := unfinished_runs(results):
        print(f"not finished: {', '.join(map(str, unfinished))}", file=sys.stderr)
    records = read_runs(results)
    rows = build_rows(records)
    if repeats := len(records) - sum(len(row.seeds) for row in rows):
        print(f"not counted: {repeats} repeat(s) of a run with equal settings and seeds", file=sys.stderr)
    if plot is not None:
        # Here and not above: matplotlib is slow to import and writes a font cache into the user's home.
        from hybridprune.report.plot import draw, encode

        _write("--plot", plot, encode(draw(rows), plot.suffix[1:]))
    table = render(rows, format)
    if output is None:
        sys.stdout.write(table)
    else:
        _write("--output", output, table.encode())


def _write(flag: str, path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{flag} {path}: can't be written ({error.strerror}); choose another file") from error


if __name__ == "__main__":
    sys.exit(main())
