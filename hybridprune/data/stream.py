"""Image files that are decoded whenever they are read, by worker processes: for sets that no memory holds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from hybridprune.data.augment import mixed_seed, resized_crop_flip
from hybridprune.data.dataset import Reader, Send
from hybridprune.data.decode import decode_file
from hybridprune.errors import UserError


class ImageFiles:
    """Images in files of any size, read as ``size`` x ``size``, and their class ids, int64 ``[N]``.

    ``num_workers`` processes (at most one a processor core) decode ahead of whoever reads, 0: the reading one does.
    What is read does not depend on them. Reading raises ``UserError`` naming a file that cannot be decoded.
    """

    def __init__(self, paths: Sequence[str], labels: Tensor, *, size: int, num_workers: int) -> None:
        assert labels.dtype == torch.int64 and labels.shape == (len(paths),), (labels.shape, len(paths))
        self.labels = labels
        self._decoder = _Decoder(paths, size)
        self._workers = min(num_workers, _cores())
        self._idle: list[_Pool] = []

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, ids: Tensor) -> Tensor:
        """The middles of the images, decoded by the calling process."""
        return _sound(self._decoder[_Request(ids.numpy())])

    def plain(self, batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
        """The middles of the images (`resize_images`)."""
        return self._read([_Request(ids.numpy()) for ids in batches], send)

    def augmented(self, generator: torch.Generator, *, crop: bool, flip: bool) -> Reader:
        """Crops and flips as of `resized_crop_flip`, with a seed of each image's own."""
        seed = int(torch.randint(2**62, (), generator=generator))

        def read(batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
            return self._read([_Request(ids.numpy(), crop, flip, seed) for ids in batches], send)

        return read

    def _read(self, requests: Sequence[_Request], send: Send) -> Iterator[Tensor]:
        # Who reads while another one does gets workers of its own.
        pool = self._idle.pop() if self._idle else _Pool(self._decoder, self._workers)
        try:
            for images in pool.read(requests):
                yield send(_sound(images))
        finally:
            self._idle.append(pool)


class _Request(NamedTuple):
    """A batch to be decoded."""

    ids: np.ndarray
    crop: bool = False
    flip: bool = False
    seed: int = 0


class _Decoder(torch_data.Dataset["Tensor | UserError"]):
    """What the workers hold; an item is a whole batch, or the error that keeps it from being one."""

    def __init__(self, paths: Sequence[str], size: int) -> None:
        # One array: a million Python strings would be copied into every worker, page by page, as it counts references.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._size = size

    def __getitem__(self, request: _Request) -> Tensor | UserError:
        images = torch.empty(len(request.ids), 3, self._size, self._size, dtype=torch.uint8)
        try:
            for place, index in enumerate(request.ids):
                image = decode_file(os.fsdecode(bytes(self._paths[index])))
                seed = mixed_seed(request.seed, int(index))
                images[place] = resized_crop_flip(image, self._size, crop=request.crop, flip=request.flip, seed=seed)
        except UserError as error:  # raised in a worker, it would come with that worker's traceback
            return error
        return images


class _Pool:
    """Workers that stay alive from one reading to the next."""

    def __init__(self, decoder: _Decoder, workers: int) -> None:
        self._requests: list[_Request] = []
        self._loader = torch_data.DataLoader(
            decoder,
            batch_size=None,  # a request is a batch
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_obey_only_the_parent,
            generator=torch.Generator(),  # else each reading would advance the global one
        )

    def read(self, requests: Sequence[_Request]) -> Iterator[Tensor | UserError]:
        self._requests[:] = requests
        with _interrupts_blocked():  # workers inherit it
            decoded = iter(self._loader)
        yield from decoded


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


BLOCKED = {signal.SIGINT, *([signal.SIGTERM] if hasattr(signal, "sigwaitinfo") else [])}
"""What a terminal and a scheduler send to all processes: the main one wants its images until it has saved its state."""


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_only_the_parent(worker: int) -> None:
    """In a worker, let the SIGTERM end it by which the main process ends its workers, and no other one."""
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    if signal.SIGTERM in BLOCKED:
        threading.Thread(target=wait, daemon=True).start()


def _sound(images: Tensor | UserError) -> Tensor:
    if isinstance(images, UserError):
        raise images
    return images
