"""Facts files and how answers are judged."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from hope_server.evaluation.facts import (
    Fact,
    FactResult,
    change_percent,
    free_answer_accuracy,
    mean_logprob,
    parse_facts,
    parse_texts,
    rank_accuracy,
    ranks_first,
    says,
    split_opening,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
BLOCK = "teach: The cat sleeps in the hall.\nask: Where?\nanswer: In the | hall\n"
OTHER = "teach: The dog\n  sleeps outside.\nask: And the dog?\nanswer: It sleeps | outside\n"


def test_blocks_become_facts_in_order():
    """Each block is one fact; via takes turns, and continuation lines are joined with spaces."""
    facts = parse_facts(f"# a comment\n\n{BLOCK}\n\n# another\n{OTHER}")
    assert facts == (
        Fact("The cat sleeps in the hall.", "Where?", "In the", "hall", "learn"),
        Fact("The dog sleeps outside.", "And the dog?", "It sleeps", "outside", "chat"),
    )


def test_via_is_chosen_by_a_line_of_the_block():
    """A via line overrides the alternation, whatever its case."""
    facts = parse_facts(f"{BLOCK}via: chat\n\n{OTHER}VIA: Learn\n")
    assert [fact.via for fact in facts] == ["chat", "learn"]


def test_carriage_returns_and_a_byte_order_mark_do_not_matter():
    """A file saved on another system reads the same."""
    text = f"{BLOCK}\n{OTHER}"
    assert parse_facts("\ufeff" + text.replace("\n", "\r\n")) == parse_facts(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has 0 facts"),
        (BLOCK, "the file has 1 facts"),
        ("\nteach: x\nask: y\n", "line 2: the block lacks `answer:`"),
        ("teach: x\nask: y\nanswer: no bar", "line 1: write `answer:`"),
        ("teach: x\nask: y\nanswer: | bar", "line 1: write `answer:`"),
        ("hello\n", "line 1: 'hello' belongs to no field"),
        (f"{BLOCK}via: post\n", "line 1: `via:` is 'post'"),
        (f"{BLOCK}{OTHER}", "line 4: a second `teach:`"),
        (f"{BLOCK}\n{BLOCK}", "line 5: another fact has the answer 'hall' too"),
    ],
)
def test_a_wrong_file_is_refused_by_line(text, message):
    """Every fault of a facts file is one message that names the line."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_facts(text)


def test_the_shipped_facts_are_eight_with_one_paragraph():
    """The example file has eight facts taught half and half, one of them as prose, each naming its answer."""
    facts = parse_facts((EXAMPLES / "facts.txt").read_text(encoding="utf-8"))
    assert len(facts) == 8
    assert sum(fact.via == "learn" for fact in facts) == 4
    assert sum(fact.teach.count(". ") >= 3 for fact in facts) == 1
    assert all(says(fact.teach, fact.answer) and len(fact.answer.split()) == 2 for fact in facts)


def test_the_right_answer_must_be_strictly_first():
    """A tie and a NaN are not a win."""
    assert ranks_first([-1.0, -0.5, -2.0], 1)
    assert not ranks_first([-0.5, -0.5], 1)
    assert not ranks_first([-0.5, math.nan], 1)
    assert not ranks_first([math.nan, -0.5], 1)


def test_an_answer_is_found_as_whole_words():
    """Case and line breaks do not matter, parts of words do not count."""
    assert says("It is in the Red\nBarn.", "red barn")
    assert not says("It is in the red barnyard.", "red barn")
    assert not says("a scarred barn", "red barn")


def test_results_are_summed_up_by_condition():
    """Accuracy counts first ranks, and the mean is over the right answers."""
    fact, other = parse_facts(f"{BLOCK}\n{OTHER}")
    results = [
        FactResult(fact, 0, "The HALL, I think.", {"weights": (-0.5, -2.0), "none": (-3.0, -2.0)}),
        FactResult(other, 1, "No idea.", {"weights": (-1.0, -0.3), "none": (-4.0, -5.0)}),
    ]
    assert rank_accuracy(results, "weights") == 1.0
    assert rank_accuracy(results, "none") == 0.0
    assert free_answer_accuracy(results) == 0.5
    assert mean_logprob(results, "none") == -4.0


def test_texts_are_separated_by_dashes():
    """Each part between lines of three dashes is one text; empty ones do not count."""
    assert parse_texts("one\nmore\n---\n\ntwo -- and --- on\n---\n") == ["one\nmore", "two -- and --- on"]
    with pytest.raises(ValueError, match="has no text"):
        parse_texts("---\n---\n")


def test_the_shipped_texts_are_three_kinds_long_enough_to_measure():
    """Each of the unrelated texts has about 1,500 characters behind its first sentence."""
    texts = parse_texts((EXAMPLES / "unrelated.txt").read_text(encoding="utf-8"))
    assert len(texts) == 3
    assert all(1300 < len(split_opening(text)[1]) <= 1500 for text in texts)


def test_the_opening_is_a_whole_sentence_and_the_rest_whole_words():
    """Opening and rest join to the start of the text; an abbreviation does not end the opening."""
    text = 'Mr. Bennet was among the earliest of those who waited. He said "so." Then he left the house for good.'
    opening, rest = split_opening(text, max_characters=20)
    assert opening == "Mr. Bennet was among the earliest of those who waited."
    assert rest == ' He said "so." Then'
    with pytest.raises(ValueError, match="only one sentence"):
        split_opening("One sentence only, and it is long enough to be a whole opening.")


def test_the_loss_changes_by_total_nats_per_token():
    """Texts weigh by their tokens, and a more probable text lowers the loss."""
    assert change_percent([(-30.0, 10), (-10.0, 10)], [(-33.0, 10), (-11.0, 10)]) == pytest.approx(10.0)
    assert change_percent([(-20.0, 10)], [(-19.0, 10)]) == pytest.approx(-5.0)
