"""What every test starts from: one compute thread, fixed seeds, no settings of the shell that runs the tests."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# A developer's HOPE_ variables must not reach the code under test; the cache of converted models may be shared.
for _name in [name for name in os.environ if name.startswith("HOPE_") and name != "HOPE_CACHE_DIR"]:
    del os.environ[_name]
# No test may look for anything on a model hub: what is not installed is not there.
os.environ["HF_HUB_OFFLINE"] = "1"

torch.set_num_threads(1)

# The time of one example says nothing on a shared machine, and a failure must come back on the next run.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the checkout."""
    return Path(__file__).resolve().parent.parent
