"""Other programs that must not outlive their time."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ENDING = 15.0
"""Seconds to end when told so."""


class Done(NamedTuple):
    """The end of a program, and its output."""

    ended: bool
    """By itself, and not told so."""
    code: int
    said: str
    complained: str


def run_for(command: Sequence[str], seconds: float, how: signal.Signals, env: Mapping[str, str] | None = None) -> Done:
    """Run a program; when time is up it gets the signal, and so its children may end as well."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ended = True
    try:
        said, complained = process.communicate(timeout=max(1.0, seconds - 2 * ENDING))
    except subprocess.TimeoutExpired:
        ended = False
        process.send_signal(how)
        try:
            said, complained = process.communicate(timeout=ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            said, complained = process.communicate()
    return Done(ended, process.returncode, said, complained)
