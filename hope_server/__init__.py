"""HOPE Server: an inference server whose sessions learn."""

import os

# Compute threads that spin while another program wants the cores make a step several times slower; threads that sleep
# between any two operations make it slower by a quarter even where nobody does. So they spin, but shortly (docs/LOG.md,
# 2026-11-21 and 2026-11-23). OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
