"""How much memory a call takes, as the operating system sees it (Linux)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def growth_bytes(run: Callable[[], object]) -> int:
    """By how much this process's resident size grows in ``run`` at its peak.

    For a fresh process in which the libraries' code has been read: one that has run the same or a smaller case once.
    """
    # resets the peak (man 5 proc_pid_clear_refs); ru_maxrss would be that of the parent process
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_resident_bytes()
    run()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
