"""What every source file keeps to: its length, sorted exports, and nothing that runs what it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_LINES = 400
ROOMS = ("hope_server", "kernels", "memory_store", "clients", "tests", "bench", "examples", "loadtests", "vllm_plugin")
# Formats that run code when they are read, or hide what was stored.
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
BANNED_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[str, str]:
    """Text of every Python file of the project by its path."""
    found = {
        path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8")
        for room in ROOMS
        for path in sorted((repository / room).rglob("*.py"))
    }
    assert "hope_server/errors.py" in found
    return found


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def banned_uses(source: str) -> Iterator[str]:
    """Yield `line: what` for each import or call that would run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            if (called := dotted(node.func)) in BANNED_CALLS:
                yield f"{node.lineno}: {called}()"
            if any(word.arg == "allow_pickle" for word in node.keywords):
                yield f"{node.lineno}: allow_pickle"
            continue
        else:
            continue
        for module in modules:
            if module.split(".")[0] in BANNED_MODULES or module in BANNED_CALLS:
                yield f"{node.lineno}: import {module}"


def exported(source: str) -> list[str] | None:
    """Return the literal `__all__` of a module, or None where it has none."""
    for node in ast.parse(source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))
    return None


def export_order(name: str) -> tuple[int, str]:
    """Sort as ruff's RUF022 does: constants, then classes, then functions, each by name."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_no_file_is_longer_than_a_reader_can_hold(sources: dict[str, str]) -> None:
    """Every Python file has at most 400 lines."""
    too_long = {path: lines for path, text in sources.items() if (lines := text.count("\n")) > MAX_LINES}

    assert too_long == {}


def test_exports_are_sorted(sources: dict[str, str]) -> None:
    """Where a module says what it exports, each name stands once: constants, classes, functions, each sorted."""
    unsorted = [
        path
        for path, text in sources.items()
        if (names := exported(text)) and names != sorted(set(names), key=export_order)
    ]

    assert unsorted == []


def test_modules_say_their_duty(sources: dict[str, str]) -> None:
    """Every module that holds code opens with a docstring."""
    silent = [path for path, text in sources.items() if text.strip() and not ast.get_docstring(ast.parse(text))]

    assert silent == []


def test_every_test_says_what_it_shows(sources: dict[str, str]) -> None:
    """Every test function has a docstring: one sentence of behaviour."""
    silent = [
        f"{path}::{node.name}"
        for path, text in sources.items()
        if path.startswith(("tests/", "vllm_plugin/tests/"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert silent == []


def test_nothing_runs_what_it_reads(sources: dict[str, str]) -> None:
    """No file uses pickle and its kin, torch.load, eval, exec or an unsafe YAML loader."""
    uses = [f"{path}:{use}" for path, text in sources.items() for use in banned_uses(text)]

    assert uses == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "import yaml\nyaml.load('1')",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
    ],
)
def test_banned_uses_are_found(source: str) -> None:
    """The search for dangerous readers finds each spelling of them."""
    assert len(list(banned_uses(source))) == 1


def test_switching_a_model_to_evaluation_is_not_eval() -> None:
    """`model.eval()` is a method like any other."""
    assert list(banned_uses("model.eval()\nyaml.safe_load('1')")) == []
