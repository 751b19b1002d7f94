"""``hybridprune report RESULTS``: a table, and if wanted a plot or a page, of finished runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hybridprune.engine.device import device_of
from hybridprune.errors import UserError, need_packages
from hybridprune.models.architectures import allow
from hybridprune.report.formats import FORMATS, render
from hybridprune.report.html import Options, render_page
from hybridprune.report.records import read_runs, unfinished_runs
from hybridprune.report.rows import build_rows
from hybridprune.store.files import write_bytes


def main(argv: Sequence[str], prog: str = "python -m hybridprune.report") -> None:
    """The command."""
    about = (
        "Tables, plots and a page of every finished run below a folder: a row for each configuration, mean and "
        "standard deviation over its seeds. Latencies stand there where hybridprune bench has measured them."
    )
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder searched for runs at any depth")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the table to FILE (default: to stdout)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="accuracy over GFLOPs (.png or .svg; default: none)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="one page with everything in itself (default: none)")
    parser.add_argument(
        "--gallery",
        metavar="N",
        type=int,
        default=Options.images,
        help="--html: test images shown that skip most (of a cascade: stop), and as many that skip least (go on) "
        "(default: %(default)s, 0: none)",
    )
    parser.add_argument(
        "--gallery_images",
        metavar="N",
        type=int,
        default=Options.limit,
        help="--html: test images routed to find them, and for a cascade's rates (default: %(default)s)",
    )
    parser.add_argument(
        "--network",
        metavar="MODULE:FACTORY",
        action="append",
        default=[],
        help="--html: a network of your own, whose layers are shown; may be repeated (default: none)",
    )
    parser.add_argument("--data_dir", help="--html: where the images lie now (default: where they lay in training)")
    parser.add_argument("--device", default="cpu", help="--html: device that routes the images (default: %(default)s)")
    _report(parser.parse_args(argv))


def _report(args: argparse.Namespace) -> None:
    results: Path = args.results
    plot: Path | None = args.plot
    page: Path | None = args.html
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {plot}: unknown kind of file; end its name in .png or .svg")
    if plot is not None:
        need_packages(f"--plot {plot}", "matplotlib", ["matplotlib"])
    for network in args.network:
        allow(network)
    options = None if page is None else _page_options(args)
    if unfinished := unfinished_runs(results):
        print(f"not finished: {', '.join(map(str, unfinished))}", file=sys.stderr)
    records = read_runs(results, lambda line: print(line, file=sys.stderr))
    rows = build_rows(records)
    if repeats := len(records) - sum(len(row.seeds) for row in rows):
        print(f"not counted: {repeats} repeat(s) of a run with equal settings and seeds", file=sys.stderr)
    if plot is not None:
        # Here and not above: matplotlib is slow to import and writes a font cache into the user's home.
        from hybridprune.report.plot import draw, encode

        _write("--plot", plot, encode(draw(rows), plot.suffix[1:]))
    if page is not None and options is not None:
        # A path's bytes need not be text.
        _write("--html", page, render_page(results, rows, options).encode(errors="replace"))
    table = render(rows, args.format)
    if args.output is not None:
        _write("--output", args.output, table.encode())
    elif page is None:
        sys.stdout.write(table)


def _page_options(args: argparse.Namespace) -> Options:
    for flag, least in (("gallery", 0), ("gallery_images", 1)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    return Options(args.gallery, args.gallery_images, args.data_dir, device_of(args.device))


def _write(flag: str, path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{flag} {path}: can't be written ({error.strerror}); choose another file") from error
    print(f"written: {path}", file=sys.stderr)
