"""Which sentences of the past a later one has put out of date, and what they would say now.

Found by words alone: most of them again with another ending ("Otto works as a baker" behind "Otto works as a pilot"),
or some of them again with a word of change ("Mira has moved the violin"). Words can mislead, so only what both signs
agree on is no longer rehearsed; what one sign says is rehearsed more seldom. English, pure Python.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["SELDOM", "Revision", "Told", "find_revisions", "restated"]

SELDOM = 0.25
"""Share of its rehearsals that a sentence keeps that is perhaps out of date."""
MOST = 0.5
"""Share of the shorter sentence's words above which two sentences are about the same."""
SOME = 0.2
"""The same, where the later one says that something has changed."""
_WIDEST = 24
"""Sentences that hold a word, above which it is no sign that they are about the same."""
_CHANGE = re.compile(
    r"\b(?:now|no longer|not any ?more|any ?more|instead|these days|from now on|since then|meanwhile"
    r"|actually|in fact|correction|mistaken|wrong|sorry|after all|turned out|repeated"
    r"|moved|changed|switched|swapped|replaced|renamed|repainted|new)\b",
    re.IGNORECASE,
)
_ANYWHERE = """
    i me my mine you your yours he him his she her hers we us our they them their its one who whom which what when
    where how why than then there here so but or if not no nor only also just very much many more most some all
    both each every other will would can could shall should may might must do does did done am being had having up
    down out off over under about into from back again away after before through between without within while
    these those such get got go goes went gone come came make made take took give gave given say said tell told
    think thought know knew like want let way thing things day today time called named name
"""
_FUNCTION = frozenset(_ANYWHERE.split())
"""Words that sentences about anything share."""
_WORD = re.compile(r"\w+")
_MARKS = ",;:"
_SHORTEST_START, _LONGEST_ENDING = 2, 4

Told = tuple[str, int]
"""A sentence and the number of its paragraph; sentences of one paragraph do not put each other out of date."""


@dataclass(frozen=True, slots=True)
class Revision:
    """Places of a sentence and of a later one that puts it out of date, by one of two signs at least.

    is_same: most words are the same, and only the ending is not; is_changed: the later one says so, and shares more
    words with no other.
    """

    earlier: int
    later: int
    is_same: bool
    is_changed: bool

    @property
    def share(self) -> float:
        """How often the earlier one is still to be rehearsed, of 1."""
        return 0.0 if self.is_same and self.is_changed else SELDOM


def find_revisions(told: Sequence[Told], common: Collection[str]) -> list[Revision]:
    """What later sentences put out of date, told in this order. common: words, in small letters, that tell nothing."""
    telling = [[word for word in _words(text) if word not in common and word not in _FUNCTION] for text, _ in told]
    widths = Counter(word for words in telling for word in set(words))
    words = [frozenset(word for word in each if widths[word] <= _WIDEST) for each in telling]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    out = []
    for place, (text, paragraph) in enumerate(told):
        near = Counter(
            earlier
            for word in words[place]
            for earlier in holders[word]
            if told[earlier][1] != paragraph and told[earlier][0] != text
        )
        overlaps = {earlier: count / min(len(words[place]), len(words[earlier])) for earlier, count in near.items()}
        best = max(overlaps.values(), default=0.0)
        changes = _CHANGE.search(text) is not None
        for earlier, overlap in overlaps.items():
            is_same = overlap > MOST and _differs_at_end(telling[earlier], set(telling[place]))
            is_changed = changes and overlap == best >= SOME
            if is_same or is_changed:
                out.append(Revision(earlier, place, is_same, is_changed))
        for word in words[place]:
            holders[word].append(place)
    return out


def _differs_at_end(old: Sequence[str], new: Collection[str]) -> bool:
    """Whether what an old sentence has of its own stands behind all that it shares: its value, not what it is about."""
    kept = [word in new for word in old]
    return kept == sorted(kept, reverse=True)


def restated(old: str, new: str, common: Collection[str]) -> str | None:
    """What an old sentence says with the new one's ending in place of its own; None where endings are not plain.

    "Mira keeps the violin in the red barn." and "Mira has moved the violin, it is in the attic now." make "Mira keeps
    the violin in the attic."
    """
    start, old_ending = _ending(old, new, common)
    _, ending = _ending(new, old, common)
    if (
        len(start) < _SHORTEST_START
        or not 0 < len(old_ending) <= _LONGEST_ENDING
        or not 0 < len(ending) <= _LONGEST_ENDING
    ):
        return None
    return " ".join([*start, *ending]) + "."


def _ending(text: str, other: str, common: Collection[str]) -> tuple[list[str], list[str]]:
    """A sentence's words up to its ending, and its ending: the last words in a row that tell and are not in `other`."""
    words, others = text.rstrip(".!").split(), set(_WORD.findall(other.lower()))

    def is_telling(word: str) -> bool:
        found = _WORD.findall(word.lower())
        return any(part not in common for part in found) and not _CHANGE.fullmatch(word.strip(_MARKS))

    stop = len(words)
    while stop and not is_telling(words[stop - 1]):
        stop -= 1
    start = stop
    while start and is_telling(words[start - 1]) and others.isdisjoint(_WORD.findall(words[start - 1].lower())):
        if start < stop and words[start - 1][-1] in _MARKS:
            break
        start -= 1
    return words[:start], [word.strip(_MARKS) for word in words[start:stop]]


def _words(text: str) -> list[str]:
    """Its words in small letters, those of change left out."""
    return _WORD.findall(_CHANGE.sub(" ", text).lower().replace("'s", " ").replace("’s", " "))
