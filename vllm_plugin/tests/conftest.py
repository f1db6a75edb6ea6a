"""What all tests of the plugin share: one thread, a toy's folder, and nothing of the machine's own settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_process import EngineProcess
from toy_models import toy_config, toy_params, write_toy

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

for name in [name for name in os.environ if name.startswith("HOPE_") and name not in ("HOPE_CACHE_DIR", "HOPE_NATIVE")]:
    del os.environ[name]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy() -> tuple[HopeConfig, Params]:
    """A toy with matrix memories in two of its blocks."""
    config = toy_config()
    return config, toy_params(config)


@pytest.fixture(scope="session")
def toy_folder(toy: tuple[HopeConfig, Params], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder that vLLM reads."""
    return write_toy(tmp_path_factory.mktemp("toy"), *toy)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a module's own."""
    return tmp_path_factory.mktemp("store") / "sessions.db"


@pytest.fixture(scope="module")
def engine(toy_folder: Path, store: Path) -> Iterator[EngineProcess]:
    """An engine over both, which a module's tests share; its steps read at most 64 tokens. One session is slow."""
    with EngineProcess(toy_folder, store, slow={"turtle": 1.5}) as engine:
        yield engine
