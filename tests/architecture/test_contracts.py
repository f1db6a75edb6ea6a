"""Who may import whom: the contracts of pyproject.toml, and what they cannot express."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

BRIDGE = "hope_server/engine/state_codec.py"
SNAPSHOT_NAMES = {"Snapshot", "Level", "Array"}


def imported_names(source: str) -> set[str]:
    """Return every module that the source imports, and `module.name` for each name taken from one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def sees_tensors(names: set[str]) -> bool:
    return any(name == "torch" or name.startswith("torch.") for name in names)


def sees_snapshots(names: set[str]) -> bool:
    re_exported = {f"hope_memory.{name}" for name in SNAPSHOT_NAMES}
    return any(name == "hope_memory.snapshot" or name.startswith("hope_memory.snapshot.") for name in names) or bool(
        names & re_exported
    )


def test_import_contracts_of_pyproject_are_kept(repository: Path) -> None:
    """Every import-linter contract holds: rooms in layers, a store without tensors, a client and a scheduler alone."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def test_only_the_state_codec_sees_tensors_and_snapshots(repository: Path) -> None:
    """No module of the server but engine/state_codec.py imports both torch and the store's snapshots."""
    bridges = set()
    for path in (repository / "hope_server").rglob("*.py"):
        names = imported_names(path.read_text(encoding="utf-8"))
        if sees_tensors(names) and sees_snapshots(names):
            bridges.add(path.relative_to(repository).as_posix())

    assert bridges == {BRIDGE}


def test_nothing_of_the_project_imports_vllm_but_its_plugin(repository: Path) -> None:
    """vLLM and the plugin live in an environment of their own; what both use, the plugin imports from the others."""
    found = [
        path.relative_to(repository).as_posix()
        for room in ("hope_server", "kernels", "memory_store", "clients", "tests", "bench", "loadtests")
        for path in (repository / room).rglob("*.py")
        if any(name.split(".")[0] in ("vllm", "hope_vllm") for name in imported_names(path.read_text(encoding="utf-8")))
    ]

    assert found == []


def test_the_plugin_has_no_update_rules_of_its_own(repository: Path) -> None:
    """Only its codec sees tensors and snapshots, and none of its modules has an operator of memories beside ours."""
    sources = {
        path.name: path.read_text(encoding="utf-8") for path in (repository / "vllm_plugin/hope_vllm").glob("*.py")
    }
    bridges = {
        name
        for name, text in sources.items()
        if sees_tensors(imported_names(text)) and sees_snapshots(imported_names(text))
    }

    assert bridges == {"codec.py"}
    assert "hope_server.model.titans_state.TitansState" in imported_names(sources["layer.py"])
    products = ("einsum", "matmul", " @ ", "bmm", "baddbmm", "autograd")
    assert [(name, word) for name, text in sources.items() for word in products if word in text] == []


@pytest.mark.parametrize(
    ("source", "tensors", "snapshots"),
    [
        ("import torch.nn.functional as F\nfrom hope_memory.snapshot import Level", True, True),
        ("from torch import Tensor\nfrom hope_memory import Snapshot", True, True),
        ("import torchvision\nfrom hope_memory import SnapshotStore", False, False),
    ],
)
def test_imports_are_recognised_in_every_spelling(source: str, tensors: bool, snapshots: bool) -> None:
    """The search for modules that see both worlds knows plain, aliased and re-exported imports."""
    names = imported_names(source)

    assert (sees_tensors(names), sees_snapshots(names)) == (tensors, snapshots)
