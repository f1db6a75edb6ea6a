"""What oneDNN and torch keep of products of each length is bounded: prompts come in every length."""

import os
import subprocess
import sys

import pytest
import torch

# A process of its own: libraries read what their caches hold at the first product.
MEASURE = """
import hope_server, torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def read(lengths):
    for length in lengths:
        torch.ops.mkldnn._linear_pointwise(torch.randn(length, 192), weight, None, "none", [], "")
torch.set_num_threads(1)
weight = torch.randn(192, 192)
read(range(1, 65))
before = resident()
read(range(65, 385))
print(resident() - before)
"""


def grown(**environ: str) -> int:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, env={**kept, **environ}, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.mkldnn.is_available(), reason="reads /proc, multiplies with oneDNN"
)
def test_memory_does_not_grow_with_the_number_of_lengths() -> None:
    """Beside a process with the libraries' own limits, one of ours hardly grows."""
    bounded = grown()
    # A choice of the environment's stays.
    unbounded = grown(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert bounded < unbounded / 4, f"{bounded} bytes, {unbounded} with the libraries' own limits"
