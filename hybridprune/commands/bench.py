"""Latencies of the stages' networks, side by side: ``hybridprune bench RUN``.

Times the dense ancestor, the run's statically pruned ancestor, the run and the run as deployed on the same test images:
eager, compiled, in ONNX Runtime, in OpenVINO and, with --int8, quantised for these engines. A cascade's ancestors are
those of its dearest member. All take turns, so that what disturbs the machine disturbs all of them alike. The predicted
speed-up is that of the FLOPs, the realised one that of the medians, both over the dense network in the same form. What
is predicted of the deployed network is what the run promised: deploying may spend more FLOPs to save time. Memory is
that of the weights and the most that tensors between layers take at once; what kernels need beside is not in it. Prints
what was gained in one sentence, in another whether gates take more time than they save, and a table for each batch
size. Writes bench.json into RUN (over an older one), which the report reads. Energy is not claimed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from hybridprune.commands.bench_arms import Bench, quantised_in
from hybridprune.commands.bench_rows import markdown
from hybridprune.commands.bench_sentence import sentence, warning
from hybridprune.commands.finished_run import FinishedRun, Parser
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.engine.device import device_of
from hybridprune.errors import UserError
from hybridprune.report.bench import FILE
from hybridprune.stages.console import say
from hybridprune.store.files import write_json

FORMS = ("eager", "compiled", *ENGINES)


def main(argv: Sequence[str], prog: str = "python -m hybridprune.bench") -> None:
    """The command."""
    parser = Parser(__doc__, prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch", metavar="N", type=int, nargs="+", default=[1, 32, 128], help="batch sizes, default: 1 32 128"
    )
    threads = torch.get_num_threads()
    parser.add_argument("--threads", metavar="N", type=int, default=threads, help="of the CPU, default: %(default)s")
    parser.add_argument(
        "--forms",
        metavar="FORM",
        nargs="+",
        choices=FORMS,
        help='eager, compiled, onnx, openvino (the last two on CPUs only; pip install "hybridprune[deploy]"); default: '
        "eager and, on a CPU with their packages, onnx and openvino",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also quantise, with accuracy and size, for those of onnx and openvino that are among the forms, else for "
        "onnx: by ONNX Runtime's static quantisation and by NNCF",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=15, help="measurements of each median (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    for flag in ("threads", "rounds"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag} {getattr(arguments, flag)}: must be at least 1")
    if min(arguments.batch) < 1:
        raise UserError(f"--batch {min(arguments.batch)}: must be at least 1")
    device = device_of(arguments.device)
    forms = _forms(arguments.forms, arguments.int8, device)
    arguments.batch_size = max(arguments.batch)
    torch.set_num_threads(arguments.threads)
    run = FinishedRun.load(arguments)
    run.run.refuse_links(FILE)
    bench = Bench(run, forms, arguments.int8, arguments.rounds, arguments.threads)
    dense, own = bench.accuracies()
    tables = [bench.table(batch) for batch in dict.fromkeys(arguments.batch)]
    write_json(run.run.path / FILE, tables)
    print(sentence(tables, dense, own))
    if (slower := warning(tables)) is not None:
        print(slower)
    print()
    for table in tables:
        print(markdown(table))
    say(f"written: {run.run.path / FILE}")


def _forms(given: Sequence[str] | None, int8: bool, device: torch.device) -> tuple[str, ...]:
    """The forms to time. UserError where one that was asked for cannot be; others are skipped, which is told."""
    asked = [f"--forms {form}" for form in given or () if form in ENGINES] + ["--int8"] * int8
    if device.type != "cpu":  # their times would stand beside those of the GPU as if they were its own
        for flag in asked:
            raise UserError(
                f"{flag}: ONNX Runtime and OpenVINO are timed on CPUs only, not on {device}; leave it out or give "
                "--device cpu"
            )
        return tuple(given or ("eager",))
    forms = tuple(given) if given else ("eager", *ENGINES)
    for form in forms:
        if form in ENGINES:
            try:
                ENGINES[form].need(f"--forms {form}" if given else form)
            except UserError as error:
                if given:
                    raise
                say(f"skipped {error}")
                forms = tuple(each for each in forms if each != form)
    for engine in quantised_in(forms) if int8 else ():
        ENGINES[engine].need_int8("--int8")
    return forms
