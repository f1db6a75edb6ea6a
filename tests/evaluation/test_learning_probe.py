"""Judging: ranks, free answers, certainty, losses and choices, with fakes that are told what to say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hope_client import InvalidRequest, Score

from hope_server.evaluation.learning_facts import draw_facts
from hope_server.evaluation.learning_probe import (
    SessionKnower,
    choice_results,
    loss_change_percent,
    paraphrases,
    recall,
    text_losses,
    top_probabilities,
    wins,
)
from hope_server.evaluation.learning_texts import Choice, Window

FACTS = draw_facts(4, 0)


class FakeKnower:
    """Gives the right answer of every fact `right` and all others `other`, each of two tokens."""

    def __init__(self, right: float, other: float, reply: str = "") -> None:
        self.right, self.other, self.text = right, other, reply
        self.asked: list[str] = []

    def scores(self, question, candidates):
        self.asked.append(question.text)
        (fact,) = [each for each in FACTS if question in (each.question, *each.rephrased)]
        return [Score(2 * (self.right if each == fact.answer else self.other), 2) for each in candidates]

    def reply(self, question):
        (fact,) = [each for each in FACTS if question in (each.question.text, *(q.text for q in each.rephrased))]
        return self.text.format(answer=fact.answer.upper())


def test_a_right_answer_counts_when_it_is_likelier_than_every_other():
    """Rank accuracy, nats per token of the right answer, and free answers that say it in any case."""
    known = recall(FACTS, FakeKnower(-1.0, -2.0, "It is the {answer}!"), 4)
    assert (known.rank_accuracy, known.logprob, known.exact) == (1.0, -1.0, 1.0)


@pytest.mark.parametrize("right", [-2.0, -3.0, math.nan])
def test_ties_and_what_is_no_number_count_as_wrong(right):
    """An answer as likely as another is not known."""
    assert wins(FACTS, FakeKnower(right, -2.0)) == 0.0


def test_a_free_answer_must_say_the_answer_itself():
    """Half a word is none, and where none is asked for there is no share."""
    assert recall(FACTS, FakeKnower(-1.0, -2.0, "x{answer}x"), 4).exact == 0.0
    assert math.isnan(recall(FACTS, FakeKnower(-1.0, -2.0), 0).exact)


def test_paraphrases_ask_every_other_wording_and_none_of_the_told_ones():
    """Each fact's rephrased questions are asked once."""
    knower = FakeKnower(-1.0, -2.0, "{answer}")
    assert paraphrases(FACTS, knower, 2).exact == 1.0
    assert sorted(knower.asked) == sorted(question.text for fact in FACTS for question in fact.rephrased)


def test_certainty_is_the_share_of_the_likeliest_candidate():
    """Eight candidates alike share evenly; a sum of 2 nats more makes e squared to 7."""
    assert top_probabilities(FACTS[:1], FakeKnower(-3.0, -3.0)) == [pytest.approx(1 / 8)]
    assert top_probabilities(FACTS[:1], FakeKnower(-2.0, -3.0)) == [pytest.approx(math.e**2 / (math.e**2 + 7))]
    assert math.isnan(top_probabilities(FACTS[:1], FakeKnower(math.nan, -3.0))[0])


class FakeSession:
    """Keeps what it is asked; every continuation scores minus its length, one token a character."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []

    def score(self, continuations, **options):
        self.calls.append(("score", options))
        return [Score(-(float(len(each)) ** 2), len(each)) for each in continuations]

    def chat(self, prompt, **options):
        self.calls.append((prompt, options))
        return SimpleNamespace(text=" yes \n")


def test_a_session_is_asked_by_its_weights_alone_and_never_taught():
    """Every request empties the window, none may write, and nothing but the question is in it."""
    session, fact = FakeSession(), FACTS[0]
    knower = SessionKnower(session)
    knower.scores(fact.question, fact.candidates)
    assert knower.reply(fact.question.text) == "yes"
    (_, scored), (prompt, options) = session.calls
    assert scored["window"] is False
    assert [message["content"] for message in scored["messages"]] == [fact.question.text, fact.question.lead_in]
    assert (prompt, options["memory"], options["temperature"]) == (
        fact.question.text,
        {"mode": "read", "window": False},
        0,
    )


def test_a_context_stands_before_the_question():
    """What a baseline is told is in its request, made from the question."""
    session = FakeSession()
    SessionKnower(session, lambda question: f"about {question}:").reply("Who?")
    assert session.calls[0][0] == "about Who?:\nWho?"


def test_losses_are_compared_text_by_text():
    """A text's loss is that of all of its windows together."""
    windows = [Window("a", "o", "xx"), Window("a", "o", "xxxx"), Window("b", "o", "x")]
    before = text_losses(windows, FakeSession())
    assert before == [("a", -4.0, 2), ("a", -16.0, 4), ("b", -1.0, 1)]
    after = [("a", -5.0, 2), ("a", -17.0, 4), ("b", -0.5, 1)]
    assert loss_change_percent(before, after) == {"a": pytest.approx(10.0), "b": pytest.approx(-50.0)}


def test_a_text_too_long_to_be_scored_at_once_is_scored_in_parts():
    """Each part stands behind all that comes before it; a refusal that shortness does not cure is told."""

    class ShortSession(FakeSession):
        limit = 100

        def score(self, continuations, **options):
            if len(continuations[0]) > self.limit:
                raise InvalidRequest("a continuation has too many tokens")
            self.calls.append((options["prompt"], {"rest": continuations[0]}))
            return [Score(-1.0, len(continuations[0]))]

    text = "word " * 60
    session = ShortSession()
    ((_, logprob, count),) = text_losses([Window("a", "begin ", text)], session)
    assert (logprob, count) == (-4.0, len(text))
    assert "".join(options["rest"] for _, options in session.calls) == text
    assert all(("begin " + text).startswith(prompt + options["rest"]) for prompt, options in session.calls)
    session.limit = 10
    with pytest.raises(InvalidRequest):
        text_losses([Window("a", "begin ", text)], session)


def test_a_choice_is_right_when_its_option_is_likeliest_per_token():
    """Longer options are not at a disadvantage by their length alone; sets are kept apart."""
    choices = [Choice("s", "p", ("aa", "b"), 1), Choice("s", "p", ("aa", "b"), 0), Choice("t", "p", ("c", "dd"), 0)]
    assert choice_results(choices, FakeSession()) == {"s": [True, False], "t": [True]}
