"""Reads facts to teach from a text file and judges the answers: pure functions, no model and no network.

A facts file holds blocks separated by blank lines; a line that starts with # is ignored. A block has

    teach:   what is told; it may run over several lines, which are joined with spaces
    ask:     the question that is asked later (may run over several lines too)
    answer:  start of a sentence that answers it | the answer
    via:     learn or chat; a block without this line takes turns: the 1st learn, the 2nd chat, and so on
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Via = Literal["learn", "chat"]
_KEYS = ("teach", "ask", "answer", "via")
_MULTILINE_KEYS = frozenset({"teach", "ask"})
_FIELD = re.compile(rf"\s*({'|'.join(_KEYS)})\s*:(.*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s)")


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: what is taught and how, the question, and the answer behind the start of its sentence."""

    teach: str
    question: str
    lead_in: str
    answer: str
    via: Via


@dataclass(frozen=True, slots=True)
class FactResult:
    """How one question went.

    right: index of the right answer among the candidates.
    free_answer: what the model said with nothing but the question.
    logprobs: condition to log-probability per token (nats) of each candidate, in the order of the candidates.
    """

    fact: Fact
    right: int
    free_answer: str
    logprobs: Mapping[str, Sequence[float]]


def parse_facts(text: str) -> tuple[Fact, ...]:
    """Return the facts of a facts file, at least two, all with different answers.

    Raises ValueError, whose message names the line and says what is wrong with it.
    """
    facts: list[Fact] = []
    for first_line, block in _blocks(text):
        default: Via = "learn" if len(facts) % 2 == 0 else "chat"
        facts.append(_read_block(first_line, block, default))
        answers = [fact.answer.casefold() for fact in facts]
        if answers[-1] in answers[:-1]:
            raise ValueError(f"line {first_line}: another fact has the answer {facts[-1].answer!r} too; change one")
    if len(facts) < 2:
        raise ValueError(
            f"the file has {len(facts)} facts; at least 2 are needed, so that there is something to choose"
        )
    return tuple(facts)


def _blocks(text: str) -> Iterable[tuple[int, list[tuple[int, str]]]]:
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.removeprefix("\ufeff").splitlines(), ""], start=1):
        if line.lstrip().startswith("#"):
            continue
        if line.strip():
            block.append((number, line))
        elif block:
            yield block[0][0], block
            block = []


def _read_block(first_line: int, block: list[tuple[int, str]], default: Via) -> Fact:
    values: dict[str, str] = {}
    current = ""
    for number, line in block:
        found = _FIELD.match(line)
        if found is not None:
            current = found[1].lower()
            if current in values:
                raise ValueError(f"line {number}: a second `{current}:` in one block; put a blank line between facts")
            values[current] = found[2].strip()
        elif current in _MULTILINE_KEYS:
            values[current] = f"{values[current]} {line.strip()}".strip()
        else:
            raise ValueError(f"line {number}: {line.strip()[:40]!r} belongs to no field; start it with `teach:`")
    missing = [key for key in _KEYS if key != "via" and not values.get(key)]
    if missing:
        raise ValueError(f"line {first_line}: the block lacks `{missing[0]}:`")
    lead_in, bar, answer = (part.strip() for part in values["answer"].partition("|"))
    if not (lead_in and bar and answer):
        raise ValueError(f"line {first_line}: write `answer:` as the start of a sentence | the answer")
    via = values.get("via", default).lower()
    if via not in ("learn", "chat"):
        raise ValueError(f"line {first_line}: `via:` is {via!r}; write learn or chat")
    return Fact(values["teach"], values["ask"], lead_in, answer, "learn" if via == "learn" else "chat")


def ranks_first(values: Sequence[float], right: int) -> bool:
    """Return whether `values[right]` is strictly higher than every other; NaN never is, and never is beaten."""
    return all(values[right] > value for index, value in enumerate(values) if index != right)


def says(text: str, answer: str) -> bool:
    """Return whether `text` has the words of `answer` in a row, whatever their case and spacing."""
    words = r"\s+".join(re.escape(word) for word in answer.split())
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


def rank_accuracy(results: Sequence[FactResult], condition: str) -> float:
    """Return the share of questions whose right answer ranks first under `condition`, 0 to 1."""
    return sum(ranks_first(result.logprobs[condition], result.right) for result in results) / len(results)


def free_answer_accuracy(results: Sequence[FactResult]) -> float:
    """Return the share of questions whose free answer says the right answer, 0 to 1."""
    return sum(says(result.free_answer, result.fact.answer) for result in results) / len(results)


def mean_logprob(results: Sequence[FactResult], condition: str) -> float:
    """Return the mean log-probability per token of the right answers under `condition`, in nats."""
    return math.fsum(result.logprobs[condition][result.right] for result in results) / len(results)


def parse_texts(text: str) -> list[str]:
    """Return the texts of a file whose texts are separated by lines `---`. Raises ValueError when there is none."""
    texts = [part.strip() for part in re.split(r"(?m)^---\s*$", text.removeprefix("\ufeff"))]
    found = [part for part in texts if part]
    if not found:
        raise ValueError("the file has no text; put at least one into it, separated by lines `---`")
    return found


def split_opening(text: str, max_characters: int = 1500, min_opening: int = 40) -> tuple[str, str]:
    """Return the first sentence of `text` and what follows it, cut at the end of a word to `max_characters`.

    A first sentence shorter than `min_opening` characters takes the next one with it: so `Mr.` ends none.
    Raises ValueError when nothing follows.
    """
    end = _SENTENCE_END.search(text, min_opening)
    rest = "" if end is None else text[end.end() :]
    if end is None or not rest.strip():
        raise ValueError(f"the text {text[:40]!r}... has only one sentence; at least two are needed")
    if len(rest) > max_characters:
        rest = rest[: max_characters + 1].rsplit(maxsplit=1)[0]
    return text[: end.end()], rest


def change_percent(before: Iterable[tuple[float, int]], after: Iterable[tuple[float, int]]) -> float:
    """Return by how many percent the loss rose, from (sum of log-probabilities, number of tokens) of each text."""
    return (_loss(after) / _loss(before) - 1) * 100


def _loss(sums: Iterable[tuple[float, int]]) -> float:
    pairs = list(sums)
    return -math.fsum(logprob for logprob, _ in pairs) / sum(num_tokens for _, num_tokens in pairs)
