"""What the repository holds: nothing large, and nothing that is true on one machine only."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

MAX_FILE_BYTES = 2 * 2**20
OWN_WEIGHTS = "hope_server/model/weights/"
# Put together from parts, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(?:" + "|".join(("home", "root", "work", "opt", "Users")) + r")/[\w.-]+")
TEMPORARY_PATH = re.compile(r"""["'`]/""" + "tmp" + r"/[\w.-]+")
INDEX_ADDRESS = re.compile(
    "|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch", r"index-url[ =]+[a-z]+:" + "//"))
)
NOT_OURS = {
    ".venv",
    ".load",
    ".router",
    ".vllm",
    ".vllm-plugin",
    ".containers",
    ".git",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "build",
    "dist",
}


def tracked_files(root: Path) -> list[Path]:
    """Return what git tracks or would add; without git (an exported tree), every file that is not a build product."""
    if (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
        return [path for name in listed if name and (path := root / name).is_file()]
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and not NOT_OURS & set(path.relative_to(root).parts) and path.name != ".setup.lock"
    ]


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[str, Path]:
    """Every file of the repository by its path."""
    found = {path.relative_to(repository).as_posix(): path for path in tracked_files(repository)}
    assert "pyproject.toml" in found
    return found


def lines_with(pattern: re.Pattern[str], files: dict[str, Path]) -> list[str]:
    """Return `path:line: text` for each line of a text file in which the pattern occurs."""
    hits = []
    for name, path in files.items():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if "\0" in text:
            continue
        hits += [f"{name}:{n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    return hits


def test_no_file_is_large(files: dict[str, Path]) -> None:
    """No file has more than 2 MiB, but models that we trained, which have 20 MB together; all weights have 40 MB."""
    large = {name: path.stat().st_size for name, path in files.items() if path.stat().st_size > MAX_FILE_BYTES}
    assert [name for name in large if not name.startswith(OWN_WEIGHTS)] == []
    assert sum(large.values()) <= 20_000_000
    assert sum(path.stat().st_size for name, path in files.items() if name.endswith(".safetensors")) <= 40_000_000


@pytest.mark.parametrize("pattern", [MACHINE_PATH, TEMPORARY_PATH], ids=["machine", "temporary"])
def test_no_path_of_one_machine(files: dict[str, Path], pattern: re.Pattern[str]) -> None:
    """No file names an absolute path that exists on somebody's machine only."""
    assert lines_with(pattern, files) == []


def test_no_address_of_a_package_index(files: dict[str, Path]) -> None:
    """No file names a package index: where packages come from is the choice of who installs."""
    assert lines_with(INDEX_ADDRESS, files) == []


@pytest.mark.parametrize("name", ["runtime", "dev"])
def test_every_locked_package_has_an_exact_version_and_hashes(repository: Path, name: str) -> None:
    """Each entry of a lock file is `name==version` with at least one sha256."""
    text = (repository / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).strip())

    assert len(entries) > 10
    assert [
        e.splitlines()[0] for e in entries if not re.match(r"[a-z0-9._-]+==\S+ ", e) or "--hash=sha256:" not in e
    ] == []


def test_versions_agree_between_the_locks(repository: Path) -> None:
    """A package that both locks name has the same version in both."""
    runtime, dev = (
        dict(
            re.findall(
                r"^([a-z0-9._-]+)==(\S+)", (repository / "requirements" / f"{name}.txt").read_text(), re.MULTILINE
            )
        )
        for name in ("runtime", "dev")
    )

    assert {name: dev[name] for name in runtime.keys() & dev} == {name: runtime[name] for name in runtime.keys() & dev}


def test_torch_is_pinned_alike_everywhere(repository: Path) -> None:
    """The torch version of requirements/torch.txt is the one that pyproject.toml asks for."""
    pin = re.search(r"^torch==\S+$", (repository / "requirements/torch.txt").read_text(encoding="utf-8"), re.MULTILINE)

    assert pin is not None
    assert f'"{pin.group()}"' in (repository / "pyproject.toml").read_text(encoding="utf-8")
