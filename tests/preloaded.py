"""Imports of every command, sooner or later: the server of ``tests.processes`` makes them once for all."""

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
import torchvision.transforms.v2.functional  # noqa: F401

import hybridprune.stages.prune
import hybridprune.stages.rl_prune
import hybridprune.stages.sp  # noqa: F401

# Threads of the server would not be there in what it forks.
torch.set_num_threads(1)
