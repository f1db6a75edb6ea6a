"""Asks for facts and judges the answers: rank of eight candidates, log-probability, free answers, loss, choices.

Nothing of what was taught stands in a request, and nobody is asked with a memory that writes. What is asked is a
`Knower`; that of a session knows by its weights alone, as its attention window is emptied for every question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hope_client import InvalidRequest, MemoryOptions, Message, Score, Session

from hope_server.evaluation.facts import change_percent, ranks_first, says
from hope_server.evaluation.learning_facts import Question, TaughtFact
from hope_server.evaluation.learning_texts import Choice, Window

__all__ = [
    "Knower",
    "Known",
    "SessionKnower",
    "choice_results",
    "loss_change_percent",
    "paraphrases",
    "recall",
    "text_losses",
    "top_probabilities",
    "wins",
]

ANSWER_TOKENS = 24
"""Longest free answer, in tokens."""
_SHORTEST_PART = 64


class Knower(Protocol):
    """Whoever can be asked: a session, or one of those it is compared with."""

    def scores(self, question: Question, candidates: Sequence[str]) -> Sequence[Score]:
        """Return how probable each candidate is behind the start of the answer."""
        ...

    def reply(self, question: str) -> str:
        """Return the greedy answer to the question alone."""
        ...


class SessionKnower:
    """A session of a server, asked with its window emptied.

    context: text that stands before the question in the request, made from the question; none by default.
    """

    def __init__(self, session: Session, context: Callable[[str], str] | None = None) -> None:
        self._session = session
        self._context = context

    def scores(self, question: Question, candidates: Sequence[str]) -> Sequence[Score]:
        """Return how probable each candidate is behind the start of the answer."""
        messages: list[Message] = [
            {"role": "user", "content": self._asked(question.text)},
            {"role": "assistant", "content": question.lead_in},
        ]
        return self._session.score([f" {each}" for each in candidates], messages=messages, window=False)

    def reply(self, question: str) -> str:
        """Return the greedy answer to the question alone."""
        memory: MemoryOptions = {"mode": "read", "window": False}
        return self._session.chat(
            self._asked(question), temperature=0, max_tokens=ANSWER_TOKENS, memory=memory
        ).text.strip()

    def _asked(self, question: str) -> str:
        return question if self._context is None else f"{self._context(question)}\n{question}"


@dataclass(frozen=True, slots=True)
class Known:
    """How well facts are known.

    rank_accuracy: share of questions whose right answer is likelier, by its tokens' mean log-probability, than each of
    the seven others; ties count as wrong. logprob: mean of the right answers' log-probability, nats per token.
    exact: share of free greedy answers that say the right answer; NaN where none was asked for.
    """

    rank_accuracy: float
    logprob: float
    exact: float

    def values(self, prefix: str = "") -> dict[str, float]:
        """Return the three by name."""
        return {
            f"{prefix}rank_accuracy": self.rank_accuracy,
            f"{prefix}logprob": self.logprob,
            f"{prefix}exact": self.exact,
        }


def recall(facts: Sequence[TaughtFact], knower: Knower, num_free: int) -> Known:
    """Ask every fact in the words it was told in; the first `num_free` also for a free answer."""
    return _known([(fact, fact.question) for fact in facts], knower, num_free)


def paraphrases(facts: Sequence[TaughtFact], knower: Knower, num_free: int) -> Known:
    """Ask every fact in each of its other wordings; the first one of the first `num_free` facts also freely."""
    pairs = [(fact, each) for fact in facts for each in fact.rephrased[:1]]
    more = [(fact, each) for fact in facts for each in fact.rephrased[1:]]
    return _known(pairs + more, knower, min(num_free, len(pairs)))


def wins(facts: Sequence[TaughtFact], knower: Knower) -> float:
    """Return the share of facts whose answer is likelier than each other candidate."""
    return _known([(fact, fact.question) for fact in facts], knower, 0).rank_accuracy


def _known(asked: Sequence[tuple[TaughtFact, Question]], knower: Knower, num_free: int) -> Known:
    hits, logprobs, free = 0, [], []
    for number, (fact, question) in enumerate(asked):
        found = [score.per_token for score in knower.scores(question, fact.candidates)]
        hits += ranks_first(found, fact.right)
        logprobs.append(found[fact.right])
        if number < num_free:
            free.append(says(knower.reply(question.text), fact.answer))
    exact = sum(free) / len(free) if free else math.nan
    return Known(hits / len(asked), math.fsum(logprobs) / len(asked), exact)


def top_probabilities(facts: Sequence[TaughtFact], knower: Knower) -> list[float]:
    """Return each fact's probability of its likeliest candidate, if one of the candidates had to be the answer."""
    return [_top_share([score.logprob for score in knower.scores(fact.question, fact.candidates)]) for fact in facts]


def _top_share(logprobs: Sequence[float]) -> float:
    """The largest of the softmax of log-probabilities."""
    if not all(math.isfinite(each) for each in logprobs):
        return math.nan
    best = max(logprobs)
    return 1 / math.fsum(math.exp(each - best) for each in logprobs)


def text_losses(windows: Sequence[Window], session: Session) -> list[tuple[str, float, int]]:
    """Return name, summed log-probability and number of tokens of each window of text, by the weights alone."""
    out = []
    for window in windows:
        score = _score_text(session, window.opening, window.rest)
        out.append((window.name, score.logprob, score.num_tokens))
    return out


def _score_text(session: Session, opening: str, rest: str) -> Score:
    """Score a text behind another; in two parts, each behind all before it, where the server scores no more at once."""
    try:
        return session.score([rest], prompt=opening, window=False)[0]
    except InvalidRequest:
        middle = rest.find(" ", len(rest) // 2)
        if len(rest) < _SHORTEST_PART or middle < 1:
            raise
    first = _score_text(session, opening, rest[:middle])
    second = _score_text(session, opening + rest[:middle], rest[middle:])
    return Score(first.logprob + second.logprob, first.num_tokens + second.num_tokens)


def loss_change_percent(
    before: Sequence[tuple[str, float, int]], after: Sequence[tuple[str, float, int]]
) -> dict[str, float]:
    """Return by how many percent the loss of each text rose, by its name."""
    out = {}
    for name in dict.fromkeys(name for name, _, _ in before):
        pairs = [[(logprob, count) for each, logprob, count in found if each == name] for found in (before, after)]
        out[name] = change_percent(pairs[0], pairs[1])
    return out


def choice_results(choices: Sequence[Choice], session: Session) -> dict[str, list[bool]]:
    """Return by set whether each item's right option is likelier, per token, than the others, by the weights alone."""
    out: dict[str, list[bool]] = {}
    for choice in choices:
        scores = session.score([f" {option}" for option in choice.options], prompt=choice.prompt, window=False)
        out.setdefault(choice.name, []).append(ranks_first([score.per_token for score in scores], choice.right))
    return out
