"""Texts that `hope bench learning` reads and scores: held-out windows, unrelated reading, multiple-choice items.

Everything comes from packages (`hope_server/training/corpora.py`); what cannot be had is left out and named.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hope_server.errors import StartupError
from hope_server.training.corpora import load_corpus

__all__ = [
    "CHOICE_SETS",
    "HELD_OUT",
    "READING",
    "Choice",
    "Found",
    "Window",
    "choice_items",
    "cut_windows",
    "held_out_windows",
    "reading_text",
]

HELD_OUT = ("postgresql", "web_bible", "linux", "factbook", "gcide")
"""A manual, scripture, developers' notes, tables, a dictionary; none of them may serve a learner's statistics."""
READING = "moby_dick"
"""What a session reads in between: public domain, and in none of the texts that damage is measured on."""
CHOICE_SETS = ("boolq", "piqa", "siqa")

WINDOW_CHARS = 1700
OPENING_CHARS = 120


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a held-out text: `rest` is scored behind `opening`. name: of the text."""

    name: str
    opening: str
    rest: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice item. name: of its set; right: place of the right option."""

    name: str
    prompt: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Found:
    """Windows or items that could be had, and one line for each text or set that could not."""

    windows: tuple[Window, ...] = ()
    choices: tuple[Choice, ...] = ()
    missing: tuple[str, ...] = ()


def held_out_windows(num_windows: int, cache_dir: Path, names: Sequence[str] = HELD_OUT) -> Found:
    """Return `num_windows` windows of each held-out text, always the same ones."""
    windows: list[Window] = []
    missing: list[str] = []
    for name in names:
        try:
            windows += cut_windows(name, load_corpus(name, cache_dir), num_windows)
        except StartupError as exc:
            missing.append(exc.message)
    return Found(windows=tuple(windows), missing=tuple(missing))


def cut_windows(name: str, text: str, num_windows: int) -> list[Window]:
    """Return windows spread evenly over a text, each beginning with a line and cut at the end of a word."""
    out = []
    for number in range(num_windows):
        middle = int(len(text) * (number + 0.5) / num_windows)
        start = text.find("\n", middle) + 1
        opening = text[start : start + OPENING_CHARS].rsplit(maxsplit=1)[0]
        rest = text[start + len(opening) : start + WINDOW_CHARS].rsplit(maxsplit=1)[0]
        out.append(Window(name, opening, rest))
    return out


def reading_text(cache_dir: Path) -> str:
    """Return the text that is read between teaching and asking. Raises StartupError where it cannot be had."""
    return load_corpus(READING, cache_dir)


def choice_items(num_items: int, cache_dir: Path) -> Found:
    """Return `num_items` items of each set, always the same ones; a set that has fewer gives all of them."""
    try:
        lines = load_corpus("choices", cache_dir).splitlines()
    except StartupError as exc:
        return Found(missing=(exc.message,))
    items: dict[str, list[Choice]] = {name: [] for name in CHOICE_SETS}
    for line in lines:
        item = json.loads(line)
        items[item["set"]].append(Choice(item["set"], item["prompt"], tuple(item["options"]), item["right"]))
    rng = random.Random(0)
    drawn = [each for name in CHOICE_SETS for each in rng.sample(items[name], min(num_items, len(items[name])))]
    missing = tuple(f"multiple-choice set {name}: its package has none" for name in CHOICE_SETS if not items[name])
    return Found(choices=tuple(drawn), missing=missing)
