"""HOPE Server: an inference server whose sessions learn."""

import os

# Compute threads that spin while another program wants the cores make a step several times slower; threads that sleep
# between any two operations make it slower by a quarter even where nobody does. So they spin, but shortly (docs/LOG.md,
# 2026-11-21 and 2026-11-23). OpenMP reads this once, when torch is loaded.
# oneDNN and torch compile every product for its number of tokens and keep 1,024 of them each, hundreds of megabytes.
# With 16 kept the products of 30 layers are as fast, since layers need the same ones (docs/LOG.md, 2026-11-23).
COMPUTE_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "5000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
}
"""What our own engine computes with where the environment says nothing; another engine has its own."""

for _name, _value in COMPUTE_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
