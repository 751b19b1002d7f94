"""Tensorboard's curves of a training."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from hybridprune.store.files import naming


class Curves:
    """A new event file in ``folder``, to be used in a ``with`` statement.

    It is written by whoever adds to it. tensorboardX's SummaryWriter leaves that to a thread: a full disk ends it, and
    its queue then blocks the training for good. Here that is an OSError which names the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Trainings that start in the same second would share a file.
            self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve, and flush them to disk; where a value is not finite, its curve has no point."""
        with naming(self._folder):
            for name, value in values.items():
                if not math.isfinite(value):
                    continue
                self._writer.write_event(_event(name, value, step))
            self._writer.flush()

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # all that was added is on disk
            self._writer.close()


def _event(name: str, value: float, step: int) -> Any:
    # protobuf makes the class when it is imported
    return event_pb2.Event(summary=scalar(name, value), step=step, wall_time=time.time())  # type: ignore[attr-defined]
