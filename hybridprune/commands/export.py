"""The network of a finished run in the form in which it is shipped: ``hybridprune export RUN``.

Writes a folder with the deployed network, which load_deployed of hybridprune.deploy reads, and a report of what was
done to it. --onnx, --openvino, --program, --aotinductor and --executorch add models that run without this package.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybridprune.commands.exported_models import SUFFIXES, Models, need
from hybridprune.commands.finished_run import FinishedRun, Parser
from hybridprune.data import EvalBatches
from hybridprune.deployment import Deployed, Harden, deploy, save_deployed
from hybridprune.deployment.store import FILES
from hybridprune.errors import UserError
from hybridprune.models.cascade import Cascade
from hybridprune.store.files import write_bytes

EVALUATION_BATCH = 128


def main(argv: Sequence[str], prog: str = "python -m hybridprune.export") -> None:
    """The command."""
    arguments = _parser(prog).parse_args(argv)
    if arguments.batch_size < 1:
        raise UserError(f"--batch {arguments.batch_size}: must be at least 1")
    harden = _harden(arguments)
    named = {flag: path for flag in SUFFIXES if (path := getattr(arguments, flag)) is not None}
    for flag, path in named.items():
        _check_writable(f"--{flag}", path, *SUFFIXES[flag])
    _check_apart(named)
    _check_folder(arguments.output)
    for flag in named:
        need(flag)
    run = FinishedRun.load(arguments)
    if harden is not None:
        run.need_gates()
        if isinstance(run.net, Cascade):
            raise UserError(f"--harden: is for gated blocks, and {run.run.path} is a cascade; leave it out")
    folder = arguments.output or run.run.path / "deployed"
    if arguments.output is None:
        run.run.refuse_links(*(f"deployed/{name}" for name in FILES))
    example = _example(run)
    validation = dataclasses.replace(run, batch_size=EVALUATION_BATCH).batches("validation")
    deployed = deploy(run.net, example, run.device, harden=harden, validation=validation)
    models = _models(named, run, deployed, example, validation)
    try:
        save_deployed(deployed, run.spec, folder)
    except OSError as error:
        raise UserError(f"--output {folder}: can't be written ({error.strerror}); choose another folder") from error
    for files in models:
        _write(files)
    print(deployed.report)
    for path in (folder, *(path for files in models for path in files)):
        print(f"written: {path}")


def _example(run: FinishedRun) -> Tensor:
    """``--batch`` validation images; again and again if there are not as many. In channels_last, as all that come."""
    few = next(iter(run.batches("validation"))).images
    repeated = few.repeat(-(-run.batch_size // len(few)), 1, 1, 1)[: run.batch_size]
    return repeated.to(memory_format=torch.channels_last)


def _models(
    named: Mapping[str, Path], run: FinishedRun, deployed: Deployed, example: Tensor, validation: EvalBatches
) -> list[dict[Path, bytes]]:
    """The contents of each model's files, the one that a flag has ``named`` first.

    Models are checked in their engines against the deployed network.
    """
    about = {
        "classes": list(run.spec.class_names),
        "input_size": run.spec.input_size,
        "mean": list(run.spec.mean),
        "std": list(run.spec.std),
        "centre_crop": run.spec.centre_crop,
    }
    make = Models(run, deployed, example, validation, run.batch_size, json.dumps(about))
    return [make.files(flag, path) for flag, path in named.items()]


def _write(files: Mapping[Path, bytes]) -> None:
    """Write the files of one model: the first, which is what one loads, is never beside others of another model."""
    first, *others = files
    if others:
        first.unlink(missing_ok=True)
    for path in (*others, first):
        write_bytes(path, files[path])


def _harden(arguments: argparse.Namespace) -> Harden | None:
    """What the flags ask for; UserError where they contradict each other."""
    given = {
        name: value
        for name in ("never", "always", "unprofitable", "keep_state")
        if (value := getattr(arguments, name)) not in (None, False)
    }
    if not arguments.harden:
        if given:
            raise UserError(f"--{next(iter(given))}: says how to harden; add --harden, which changes decisions")
        return None
    harden = Harden(**given)
    for name in ("never", "always"):
        if not 0 <= getattr(harden, name) <= 1:
            raise UserError(f"--{name} {getattr(harden, name)}: is a share of the images; give 0 to 1")
    if harden.never >= harden.always:
        raise UserError(f"--never {harden.never}: must be below --always {harden.always}")
    return harden


def _check_writable(flag: str, path: Path, suffix: str, *others: str) -> None:
    """UserError if a model can't be written to ``path``, or its file of another suffix is there and not its own."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise UserError(f"{flag} {path}: {what}; name a file in an existing folder")
    if path.suffix != suffix:  # a run's files have other ones, so none is overwritten
        raise UserError(f"{flag} {path}: name a file that ends in {suffix}")
    for other in map(path.with_suffix, others):
        if other.exists() and not path.exists():
            raise UserError(f"{flag} {path}: would overwrite {other}, which is there without it; name another file")


def _check_apart(named: Mapping[str, Path]) -> None:
    """UserError if two flags name one file, be it by different paths."""
    taken: dict[str, str] = {}
    for flag, path in named.items():
        for file in map(path.with_suffix, SUFFIXES[flag]):
            if (other := taken.setdefault(os.path.realpath(file), flag)) != flag:
                raise UserError(f"--{flag} {path}: is the file of --{other}; name another one")


def _check_folder(path: Path | None) -> None:
    """UserError if ``path`` holds a run or a pruned module, whose weights have the name of the deployed ones."""
    if path is not None and any((path / name).exists() for name in ("spec.json", "config.json", "result.json")):
        raise UserError(
            f"--output {path}: holds a run or a pruned module; name another folder, for example {path}/deployed"
        )


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch",
        "--bs",
        dest="batch_size",
        type=int,
        default=1,
        help="images at a time for which forms are chosen; at 1, ONNX models and programs that decide for each image "
        "take single ones only and branch, else any number is gathered (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder of the network (default: RUN/deployed)")
    parser.add_argument("--onnx", metavar="FILE", type=Path, help="also an ONNX model, .onnx, checked (default: none)")
    parser.add_argument(
        "--openvino",
        metavar="FILE",
        type=Path,
        help="also an OpenVINO model, .xml with its .bin beside it, checked (default: none)",
    )
    parser.add_argument(
        "--program", metavar="FILE", type=Path, help="also a torch.export program, .pt2 (default: none)"
    )
    parser.add_argument(
        "--aotinductor",
        metavar="FILE",
        type=Path,
        help="also a package of native code for this machine, .pt2, by torch's compiler, checked (default: none)",
    )
    parser.add_argument(
        "--executorch",
        metavar="FILE",
        type=Path,
        help='also a program for phones, .pte, which takes one image, checked (pip install "hybridprune[mobile]"; '
        "default: none)",
    )
    hardening = parser.add_argument_group("hardening (changes decisions; measured on the validation images)")
    hardening.add_argument(
        "--harden", action="store_true", help="take decisions that are always the same once and for all"
    )
    hardening.add_argument("--never", type=float, help="remove blocks that at most this share executes (default: 0)")
    hardening.add_argument("--always", type=float, help="remove gates that at least this share passes (default: 1)")
    hardening.add_argument(
        "--unprofitable", action="store_true", help="remove gates, too, that by the clock cost more than they save"
    )
    hardening.add_argument(
        "--keep_state",
        action="store_true",
        help="let removed recurrent gates feed the state of those behind, whose decisions then change less",
    )
    return parser
