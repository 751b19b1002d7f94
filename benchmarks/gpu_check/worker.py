"""A process that runs checks: whatever one does to the process or the device, the next one may have another.

It is asked in lines of JSON on its standard input and answers so on its standard output; what checks print is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import CHECKS
from benchmarks.gpu_check.check import Setting, to_json

ROOT = str(Path(__file__).resolve().parents[2])
START = 120.0
"""Seconds until a process has torch and the device."""


def run(name: str, setting: Setting) -> dict[str, Any]:
    """The row of one check; an error is a row, too."""
    started = time.monotonic()
    try:
        found = CHECKS[name].run(setting)
    except Exception as error:  # whatever a device or a library raises
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((each for each in reversed(frames) if ROOT in each.filename), frames[-1])
        note = f"{type(error).__name__}: {reason[:200]} ({os.path.basename(frame.filename)}:{frame.lineno})"
        return to_json(name, "error", time.monotonic() - started, note=note)
    return to_json(name, found.status, time.monotonic() - started, found)


def serve(device: torch.device) -> None:
    """Answer until the input ends, or until the device is of no more use."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.zeros(1, device=device).item()
    answers.write("{}\n")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(run(request.pop("check"), Setting(device=device, **request))) + "\n")
        try:
            torch.zeros(1, device=device).sum().item()
        except Exception:  # an error on a GPU stays
            return


@dataclass
class Worker:
    """A process that works on checks, started anew when it has ended."""

    device: str
    threads: int
    module: str = "benchmarks.gpu_check"
    process: asyncio.subprocess.Process | None = None

    async def ask(self, name: str, seconds: float, quick: bool, data_dir: str | None) -> dict[str, Any]:
        """The row of a check; one that takes longer than ``seconds`` is killed."""
        try:
            await asyncio.wait_for(self._start(), START)
        except TimeoutError:
            await self.end()
            return to_json(name, "timeout", START, note="the process did not start")
        started = time.monotonic()
        request = {"check": name, "seconds": seconds, "quick": quick, "data_dir": data_dir}
        try:
            answer = await asyncio.wait_for(self._exchange(request), seconds)
        except TimeoutError:
            await self.end()
            return to_json(name, "timeout", time.monotonic() - started, note=f"killed after {seconds:.0f} s")
        if answer:
            return json.loads(answer)
        await self.end()
        return to_json(name, "error", time.monotonic() - started, note="the process died")

    async def _start(self) -> None:
        if self.process is not None and self.process.returncode is None:
            return
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self.module, "--worker", "--device", self.device),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            start_new_session=True,
            limit=2**20,
        )
        assert self.process.stdout is not None
        await self.process.stdout.readline()

    async def _exchange(self, request: dict[str, Any]) -> bytes:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            await self.process.stdin.drain()
        except ConnectionError:
            return b""
        return await self.process.stdout.readline()

    async def end(self) -> None:
        """Kill the process and all that it has started."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(self.process.pid, 9)
            await self.process.wait()
        self.process = None
