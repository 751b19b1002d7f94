"""Several processes of one run, started by torchrun: who they are, and how they end.

All of them run the same program on their own shares of the images. The first one alone writes files and speaks; what
it alone decides or reads, the others are told.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hybridprune.errors import UserError, ending, run_command, stopped_by_sigterm

PATIENCE = timedelta(days=1)
"""How long the others wait while one reads a large folder of images for the first time."""
LAST_WORDS = 10.0
"""Seconds that a failing process gives the others to end as well."""


def count() -> int:
    """The number of processes that work on this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def run_together(command: Callable[[], None]) -> int:
    """``run_command``, together with the other processes that torchrun has started.

    If any of them fails, the first to do so tells the user, once, and all return its exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run_command(command)
    store, own, world = next(rendezvous("env://"))
    store.set_timeout(PATIENCE)
    # Tensors on GPUs travel by nccl, those on CPUs by gloo.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("run", store), rank=own, world_size=world, timeout=PATIENCE)
    try:
        with stopped_by_sigterm():
            any_process(False)  # nobody leaves while another is still being connected
            command()
            any_process(False)  # nobody leaves before all have done their work
        dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        code, message = (
            ending(error) or _loss_of_another(error) or (1, "".join(traceback.format_exception(error)).rstrip())
        )
        return _end(store, own, world, code, message)
    return 0


def _loss_of_another(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message where another process has died without a word, for example for want of memory."""
    lost = "Connection closed by peer", "Connection reset by peer", "Broken pipe"
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in lost):
        return None
    return 1, "failed: another process of this run has died; give the same command with --resume to go on"


def _end(store: Store, own: int, world: int, code: int, message: str) -> int:
    """Tell the user what went wrong unless another process has; the exit code of the one that has."""
    speaks = store.add("failed", 1) == 1
    if speaks:
        with suppress(OSError):
            print(message, file=sys.stderr, flush=True)
        store.set("code", str(code))
    if dist.is_initialized():
        dist.destroy_process_group()  # ends the others' waiting for this one
    if not speaks:
        code = int(store.get("code"))
    # Torchrun ends all as soon as one is gone: all leave together, the first one last, for the store may be its own.
    deadline = time.monotonic() + LAST_WORDS
    store.add("ended", 1)
    _wait(store, "ended", world, deadline)
    if own > 0:
        store.add("left", 1)
    else:
        _wait(store, "left", world - 1, deadline)
    return code


def _wait(store: Store, name: str, value: int, deadline: float) -> None:
    """Until a counter has reached the value."""
    while store.add(name, 0) < value and time.monotonic() < deadline:
        time.sleep(0.02)


@contextmanager
def first_on_this_machine() -> Iterator[None]:
    """Inside, the first process of each machine runs before its others, which find what it has left there."""
    others = count() > 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0
    if others:
        any_process(False)
    yield
    if count() > 1 and not others:
        any_process(False)


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process where ``device`` is a GPU, else ``device``; UserError if there are too few GPUs."""
    if device.type != "cuda" or count() == 1:
        return device
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if own >= torch.cuda.device_count():
        raise UserError(
            f"--device {device}: this machine has {torch.cuda.device_count()} GPUs, one for each process; "
            "give torchrun that --nproc-per-node"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def is_own(number: int) -> bool:
    """Whether the item of this number (from 0) is this process's, where the processes take items in turn."""
    return number % count() == rank()


def total(tensors: Iterable[Tensor]) -> None:
    """Replace the tensors by their sums over the processes; all pass the same shapes in the same order."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def any_process(wish: bool) -> bool:
    """Whether any process has this wish; all of them ask at the same place of the program."""
    return bool(largest(int(wish)))


def largest(number: int) -> int:
    """The largest of the processes' numbers; all of them ask at the same place of the program."""
    if count() == 1:
        return number
    numbers = torch.tensor([number], dtype=torch.int32)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def bytes_from_first(produce: Callable[[], bytes]) -> bytes:
    """The bytes that ``produce`` gives in the first process, which alone calls it."""
    if count() == 1:
        return produce()
    content = produce() if is_first() else b""
    # A user's own process group may be able to send from GPUs only.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    length = torch.tensor([len(content)], device=device)
    dist.broadcast(length, 0)
    if not int(length):
        return b""
    message = torch.frombuffer(bytearray(content if is_first() else int(length)), dtype=torch.uint8).to(device)
    dist.broadcast(message, 0)
    return message.cpu().numpy().tobytes()


def json_from_first(produce: Callable[[], Any]) -> Any:
    """The value that ``produce`` gives in the first process, sent as JSON: lists take the place of tuples."""
    return produce() if count() == 1 else json.loads(bytes_from_first(lambda: json.dumps(produce()).encode()))
