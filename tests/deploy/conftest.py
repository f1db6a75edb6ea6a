"""The files that describe containers, read once."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: the stage that it is in, its word, and the rest as one line."""

    stage: str
    word: str
    text: str


def read_dockerfile(text: str) -> list[Instruction]:
    """Return a Dockerfile's instructions, without comments and with continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        found.append(Instruction(stage, word, " ".join(rest.split())))
    return found


def load_script(path: Path) -> ModuleType:
    """Return a script that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(text: str) -> float:
    """Return a duration like 45s or 1m30s in seconds."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)([hms])", text))


def num_bytes(text: str) -> int:
    """Return a size as compose, nginx and Redis write them, like 3g, 65m or 1gb, in bytes."""
    found = re.fullmatch(r"([0-9]+)([kmg])b?", text.lower())
    assert found is not None, text
    return int(found[1]) << 10 * ("kmg".index(found[2]) + 1)


@pytest.fixture(scope="session")
def dockerfile(repository: Path) -> list[Instruction]:
    """The instructions of the Dockerfile."""
    return read_dockerfile((repository / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def compose(repository: Path) -> dict[str, Any]:
    """compose.yaml, with its merges done."""
    found: dict[str, Any] = yaml.safe_load((repository / "compose.yaml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def servers(compose: dict[str, Any]) -> dict[str, Any]:
    """The services that serve sessions, by name."""
    return {name: service for name, service in compose["services"].items() if name.startswith("server-")}
