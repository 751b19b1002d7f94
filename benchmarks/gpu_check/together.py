"""A process group of one: what processes tell each other, by nccl between GPUs and gloo between CPUs.

Started by torchrun, it also is the program that one process of the group runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from unittest.mock import patch

import torch
import torch.distributed as dist

from benchmarks.device_cases.case import resnet, stage
from benchmarks.gpu_check.check import Check, Found, Setting
from benchmarks.gpu_check.command import run_for
from hybridprune import processes
from hybridprune.engine import parallel

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


def group_of_one(setting: Setting) -> Found:
    """Start this module by torchrun."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    command = [*torchrun, "-m", "benchmarks.gpu_check.together"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_for([*command, str(setting.device)], setting.seconds, signal.SIGTERM, environment)
    if done.code or not done.ended:
        lines = [line for line in done.complained.splitlines() if "Error" in line]
        raise RuntimeError(lines[0] if lines else f"{done.complained[-200:]} (exit code {done.code})")
    return Found(note=done.said.strip().splitlines()[-1])


def main(device: torch.device) -> None:
    """Collectives of one process that stands for two: the group counts as two, whose second one is silent."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    for dtype in TYPES:
        sent = torch.arange(6, device=device).to(dtype)
        for collective in (dist.all_reduce, lambda tensor: dist.broadcast(tensor, 0)):
            received = sent.clone()
            collective(received)
            assert torch.equal(received, sent), (dtype, received)
    with patch.object(parallel, "count", lambda: 2), patch.object(processes, "count", lambda: 2):
        halved = torch.ones(3, device=device)
        parallel.average([halved])
        assert halved.tolist() == [0.5] * 3
        net = resnet(device)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        parallel.share_weights(net)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        whole = parallel.gather(torch.ones(2, 3, device=device), 1, 4)
        assert whole.sum(1).tolist() == [0, 3, 3, 0]
        assert processes.json_from_first(lambda: {"a": [1]}) == {"a": [1]} and processes.any_process(True)
    if device.type == "cuda":
        stage("sp", "--sync_batchnorm")(device)
    dist.destroy_process_group()
    print(backend)


CHECKS: Mapping[str, Check] = {"a group of one process": Check(group_of_one, seconds=90, alone=True)}

if __name__ == "__main__":
    main(torch.device(sys.argv[1]))
