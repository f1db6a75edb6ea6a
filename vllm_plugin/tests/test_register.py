"""What vLLM is told when it loads the plugin, and by which vLLM it is not told anything."""

from __future__ import annotations

import os

import hope_vllm
import pytest
from hope_vllm.errors import UnsupportedVllm
from hope_vllm.names import ARCHITECTURE, CONNECTOR, OPERATOR


def test_an_old_vllm_is_refused_before_anything_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin's entry point raises in every process of such a vLLM, so that none starts without memories."""
    import vllm
    from vllm import ModelRegistry

    monkeypatch.setattr(vllm, "__version__", "0.31.4")
    monkeypatch.setattr(ModelRegistry, "register_model", lambda *_: pytest.fail("registered"))

    with pytest.raises(UnsupportedVllm, match=r"needs vLLM 0\.32\.x.*this is 0\.31\.4"):
        hope_vllm.register()


def test_registering_twice_is_registering_once() -> None:
    """vLLM may load plugins more than once in a process."""
    from vllm import ModelRegistry
    from vllm.config import CompilationConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    hope_vllm.register()
    hope_vllm.register()

    assert ARCHITECTURE in ModelRegistry.get_supported_archs()
    assert CONNECTOR in KVConnectorFactory._registry
    assert CompilationConfig._attention_ops.count(OPERATOR) == 1


def test_the_plugin_changes_nothing_of_vllms_threads() -> None:
    """What our own server chooses for its threads and caches is not left in the environment of vLLM's processes."""
    import subprocess
    import sys

    from hope_server import COMPUTE_ENVIRONMENT

    code = f"import hope_vllm, os; print([name for name in {list(COMPUTE_ENVIRONMENT)} if name in os.environ])"
    environ = {name: value for name, value in os.environ.items() if name not in COMPUTE_ENVIRONMENT}
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
