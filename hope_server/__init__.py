"""HOPE Server: an inference server whose sessions learn."""

import os

# Compute threads that spin while another program wants the cores make a step several times slower (docs/LOG.md,
# 2026-11-21), so they spin only shortly. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
