"""Several processes of one run, forked from the test's own: they need not import everything again."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from hybridprune.processes import run_together


def together(folder: Path, command: Callable[[], object], processes: int = 2) -> list[tuple[int, Any, str, str]]:
    """Exit code, what ``command`` returned (None if it failed), standard output and error of each process.

    They are started with torchrun's environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run, (folder, command, processes, port), nprocs=processes, start_method="fork")
    return [pickle.loads((folder / f"process{rank}.pickle").read_bytes()) for rank in range(processes)]


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
