"""Software and hardware beside a result."""

from __future__ import annotations

import json

import numpy
import torch

from hybridprune.precision import tf32
from hybridprune.store.provenance import hardware, versions
from hybridprune.version import __version__
from tests.devices.claimed import claimed_cuda


def test_versions_are_those_that_compute() -> None:
    found = versions()
    assert found["hybridprune"] == __version__
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert found["numpy"] == numpy.__version__


def test_hardware_can_be_stored_and_names_the_device() -> None:
    found = hardware(torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "cpu" and found["name"] == found["cpu"] != ""
    assert found["threads"] == torch.get_num_threads()


def test_a_gpu_says_how_it_computes_products_of_fp32_numbers() -> None:
    with claimed_cuda() as device:
        for allowed, said in ((False, "matmul ieee, conv ieee, rnn ieee"), (True, "matmul tf32, conv tf32, rnn tf32")):
            with tf32(allowed):
                found = hardware(device)
            assert (found["name"], found["fp32"]) == ("claimed", said)
