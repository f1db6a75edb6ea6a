"""HOPE Server: an inference server whose sessions learn."""

import os

# Two compute threads that spin while a third program runs make a step 4 times slower (docs/LOG.md, 2026-11-21); threads
# that sleep cost nothing measurable on an idle machine. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
