"""What the documents say about the tree is true of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hope_server.settings import Settings

PACKAGES = (
    "hope_server",
    "kernels/hope_kernels",
    "memory_store/hope_memory",
    "clients/hope_client",
    "vllm_plugin/hope_vllm",
)


def listed_files(readme: str) -> dict[str, list[str]]:
    """Return the files that the README lists, by the heading of their table, as written."""
    part = readme.split("## Every file in six words")[1].split("\n## ")[0]
    rooms: dict[str, list[str]] = {}
    for table in re.split(r"\n\n", part):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
        if rows:
            rooms[rows[0][0]] = [row[0] for row in rows[2:]]
    return rooms


def listed_paths(readme: str) -> set[str]:
    """Return every listed file as a path from the root: a row is relative to one of its table's folders."""
    paths = set()
    for heading, names in listed_files(readme).items():
        folders = re.findall(r"`([^`]+)/`", heading) or [""]
        for name in names:
            own = [folder for folder in folders if len(folders) > 1 and name.split("/")[0] == folder.split("/")[-1]]
            folder = str(Path(own[0]).parent) if own else folders[0]
            paths.add(f"{folder}/{name}" if folder else name)
    return paths


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    """The README's text."""
    return (repository / "README.md").read_text(encoding="utf-8")


def test_readme_names_every_source_file(repository: Path, readme: str) -> None:
    """Each module of the four packages has its line in the README."""
    modules = {
        path.relative_to(repository).as_posix()
        for package in PACKAGES
        for path in (repository / package).rglob("*.py")
        if path.name != "__init__.py"
    }

    assert modules - listed_paths(readme) == set()


def test_readme_names_no_file_that_is_gone(repository: Path, readme: str) -> None:
    """Each file that the README lists exists."""
    assert [path for path in sorted(listed_paths(readme)) if not (repository / path).exists()] == []


def test_readme_names_every_setting(readme: str) -> None:
    """The table of settings has every field of Settings and no other."""
    table = readme.split("## Settings")[1].split("\n## ")[0]
    named = {
        name for line in table.splitlines() if line[:1] == "|" for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }

    assert named == set(Settings.model_fields)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/PAPERS.md",
        "docs/LOG.md",
        "clients/README.md",
        "docs/SDK.md",
        "docs/STORE.md",
        "docs/OPERATIONS.md",
        "docs/DEPLOY.md",
        "vllm_plugin/README.md",
    ],
)
def test_links_lead_somewhere(repository: Path, page: str) -> None:
    """Each relative link of a page leads to a file of the repository."""
    path = repository / page
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))

    assert [link for link in links if not (path.parent / link).exists()] == []


def test_make_lists_every_verb(repository: Path) -> None:
    """Each verb that the README promises is a target of the Makefile with a line of help."""
    helped = re.findall(r"^([a-z-]+):.*## ", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert {"setup", "serve", "demo", "test", "check", "bench", "lock", "clean"} <= set(helped)


def test_every_equation_is_where_its_page_says(repository: Path) -> None:
    """Each file that the page of equations names exists, and each name of code beside it is in one of them."""
    rows = [
        line.split("|")[3:5]
        for line in (repository / "docs/EQUATIONS.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| equation")
    ]
    assert len(rows) > 20
    roots = ("", "hope_server", "kernels")
    for code, tests in rows:
        names = re.findall(r"`([^`]+)`", code)
        paths = [name for name in names if "/" in name]
        found = [
            next((repository / root / path for root in roots if (repository / root / path).exists()), path)
            for path in paths
        ]
        assert [path for path in found if isinstance(path, str)] == []
        text = "".join(file.read_text("utf-8") for path in found for file in _sources(Path(path)))
        text += (repository / "hope_server/model/cms.py").read_text("utf-8") + (
            repository / "hope_server/model/params.py"
        ).read_text("utf-8")
        assert [name for name in names if "/" not in name and name.split(".")[-1] not in text] == []
        assert [path for path in re.findall(r"`([^`]+)`", tests) if not (repository / path).exists()] == []


def _sources(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]
