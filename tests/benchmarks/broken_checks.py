"""Checks that go wrong in every way, served as those of ``benchmarks.gpu_check`` are."""

from __future__ import annotations

import os
import time
from unittest.mock import patch

import torch

from benchmarks.gpu_check import worker
from benchmarks.gpu_check.check import Check, Found, Setting


def fails(setting: Setting) -> Found:
    raise ValueError("first line\nsecond line")


def dies(setting: Setting) -> Found:
    os._exit(7)


def sleeps(setting: Setting) -> Found:
    time.sleep(600)
    return Found()


def speaks(setting: Setting) -> Found:
    print("to the screen", flush=True)
    os.write(1, b"and to its descriptor\n")
    return Found(difference=0.5, tolerance=0.25, note=f"{setting.quick}, {setting.data_dir}")


BROKEN = {"fails": Check(fails), "dies": Check(dies), "sleeps": Check(sleeps), "speaks": Check(speaks)}

if __name__ == "__main__":
    with patch.object(worker, "CHECKS", BROKEN):
        worker.serve(torch.device("cpu"))
