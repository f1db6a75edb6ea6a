"""A planted fault: which text of which file becomes what, and which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class PatchError(Exception):
    """A planted fault does not fit the source any more."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a file: `old` occurs there exactly once and becomes `new`."""

    path: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Change the file below `root`. Raises PatchError where `old` does not occur exactly once."""
        file = root / self.path
        if not file.is_file():
            raise PatchError(f"{self.path} does not exist")
        text = file.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise PatchError(
                f"{self.path} holds the text to change {count} times: {self.old.strip().splitlines()[0]!r}"
            )
        file.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: of the commit protocol, or of an operator.

    name: short, unique; meaning: what breaks for the user; edits: how it is planted; tests: what pytest is given, at
    least one of which must fail.
    """

    name: str
    meaning: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Plant the fault in the tree below `root`. Raises PatchError."""
        for edit in self.edits:
            edit.apply(root)
