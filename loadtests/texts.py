"""What users say and feed: short facts, each of them different, drawn from a seed."""

from __future__ import annotations

import random

_WHO = ("Mira", "Anton", "Priya", "Jonas", "Leila", "Tomas", "Greta", "Omar", "Ines", "Viktor")
_WHAT = ("violin", "ladder", "passport", "telescope", "recipe book", "blue bicycle", "map", "lantern", "chess set")
_WHERE = ("red barn", "attic", "boat house", "old mill", "garage", "hotel safe", "tram depot", "green cabin")
_ASKED = ("Where is the {what} of {who}?", "What does {who} keep in the {where}?", "Who has the {what}?")


def fact(chance: random.Random, label: str) -> str:
    """Return a sentence that no other label has."""
    return f"Note {label}: {chance.choice(_WHO)} keeps the {chance.choice(_WHAT)} in the {chance.choice(_WHERE)}."


def question(chance: random.Random, label: str) -> str:
    """Return a question that no other label has."""
    asked = chance.choice(_ASKED).format(
        who=chance.choice(_WHO), what=chance.choice(_WHAT), where=chance.choice(_WHERE)
    )
    return f"{asked} ({label})"


def piece(chance: random.Random, label: str, num_chars: int) -> str:
    """Return about `num_chars` characters of facts, one at least."""
    sentences = [fact(chance, f"{label}.0")]
    size = len(sentences[0])
    while size < num_chars:
        sentences.append(fact(chance, f"{label}.{len(sentences)}"))
        size += len(sentences[-1]) + 1
    return " ".join(sentences)
