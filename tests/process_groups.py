"""Several processes of one run, forked from the test's own: they need not import everything again."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from hybridprune.data import Share
from hybridprune.models.routed import Routed
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.processes import run_together

FORWARD = GatedNetwork.forward
# A process that has exported a network before its first backward pass could not do any in the processes it forks.
torch.ones((), requires_grad=True).backward()


def together(
    folder: Path, command: Callable[[], object], processes: int = 2, survivors: Sequence[int] | None = None
) -> list[tuple[int, Any, str, str]]:
    """Exit code, what ``command`` returned (None if it failed), standard output and error of each process.

    They are started with torchrun's environment. ``survivors``: those that are not killed meanwhile, by default all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(
        _run, (folder, command, processes, port), nprocs=processes, join=survivors is None, start_method="fork"
    )
    for process in () if context is None else context.processes:
        assert process is not None
        process.join()
    ended = range(processes) if survivors is None else survivors
    return [pickle.loads((folder / f"process{rank}.pickle").read_bytes()) for rank in ended]


def _run(rank: int, folder: Path, command: Callable[[], object], processes: int, port: int) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    found: list[object] = []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_together(lambda: found.append(command()))
    result = code, found[0] if found else None, out.getvalue(), err.getvalue()
    (folder / f"process{rank}.pickle").write_bytes(pickle.dumps(result))


def on_shards(net: GatedNetwork) -> Callable[..., Routed]:
    """The oracle: one process runs the shares of two one after the other, each with BatchNorm statistics of its own.

    Running statistics are the mean of what the two make of them.
    """

    def forward(images: Tensor, *positional: Any, **options: Any) -> Routed:
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [(norm.running_mean, norm.running_var) for norm in norms]
        routed, after = [], []
        for own in range(2):
            share = Share.of(len(images), own, 2)
            part = slice(share.start, share.stop)

            def cut(value: Any, part: slice = part) -> Any:
                return value[part] if isinstance(value, Tensor) else value

            for norm, (mean, variance) in zip(norms, before, strict=True):
                assert mean is not None and variance is not None
                norm.running_mean, norm.running_var = mean.clone(), variance.clone()
            cut_options = {name: cut(value) for name, value in options.items()}
            routed.append(FORWARD(net, images[part], *map(cut, positional), **cut_options))
            after.append([(norm.running_mean, norm.running_var) for norm in norms])
        for norm, (mean, variance), (other_mean, other_variance) in zip(norms, *after, strict=True):
            norm.running_mean, norm.running_var = (mean + other_mean) / 2, (variance + other_variance) / 2
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked -= 1
        return Routed(*map(torch.cat, zip(*routed, strict=True)))

    return forward
