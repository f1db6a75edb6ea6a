"""The list of planted faults fits the source, so that it does not rot unseen between two runs of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Edit, Mutant, PatchError


def test_there_are_enough_and_their_names_differ() -> None:
    """At least twelve faults, each with a name of its own."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_can_be_planted(mutant: Mutant, repository: Path, tmp_path: Path) -> None:
    """Every edit finds its text exactly once, what it makes is Python, and the tests that must notice exist."""
    for edit in mutant.edits:
        target = tmp_path / edit.path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((repository / edit.path).read_text(encoding="utf-8"), encoding="utf-8")
    mutant.apply(tmp_path)

    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
    assert [test for test in mutant.tests if not (repository / test.split("::")[0]).exists()] == []


def test_an_edit_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    """A text that is missing, or there twice, and a file that is gone are all refused."""
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n", encoding="utf-8")

    for path, old in (("a.py", "y"), ("a.py", "x = 1"), ("b.py", "x")):
        with pytest.raises(PatchError):
            Edit(path, old, "z").apply(tmp_path)
