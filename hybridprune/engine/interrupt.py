"""Ctrl-C and SIGTERM as requests that the training loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hybridprune.errors import Stopped


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Inside, the first SIGINT or SIGTERM only makes the yielded function return its number, before that 0.

    The second one interrupts at once: it raises KeyboardInterrupt, for SIGTERM `Stopped`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread receives signals
        return
    requested = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise Stopped if signum == signal.SIGTERM else KeyboardInterrupt
        requested = signum

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
