"""Stories, understood anew from their words alone."""

from __future__ import annotations

import pytest
import torch

from hope_server.evaluation.stories import DROPS, KINDS, MOVES, PEOPLE, PLACES, TAKES, THINGS, VOCABULARY, StoryTask


def _trails(story: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Follow a story: where each person is, and the places that each thing was seen to be in."""
    where: dict[str, str] = {}
    held: dict[str, set[str]] = {person: set() for person in PEOPLE}
    trails: dict[str, list[str]] = {}
    for sentence in story.split(" . "):
        for person in PEOPLE:
            at = sentence.find(f"{person} ")
            if at < 0:
                continue
            deed = sentence[at + len(person) + 1 :]
            verb = next(verb for verb in (*MOVES, *TAKES, *DROPS) if deed.startswith(f"{verb} the "))
            object_ = deed.removeprefix(f"{verb} the ").split()[0]
            if verb in MOVES:
                where[person] = object_
                for thing in held[person]:
                    trails[thing].append(object_)
            elif verb in TAKES:
                assert all(object_ not in others for others in held.values()), "nobody takes what is held"
                if object_ in trails:
                    assert trails[object_][-1] == where[person], "a thing is taken where it is"
                else:
                    trails[object_] = [where[person]]
                held[person].add(object_)
            else:
                held[person].remove(object_)
    return where, trails


def _answer(question: str, where: dict[str, str], trails: dict[str, list[str]]) -> str:
    words = question.split()
    if words[1] == "is":
        return where[words[2]] if words[2] in where else trails[words[3]][-1]
    trail = trails[words[3]]
    assert trail.count(words[6]) == 1
    return trail[trail.index(words[6]) - 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [110, 200])
def test_every_answer_follows_from_the_story(kind, length):
    """A reader who understands the sentences answers all questions as the targets do."""
    task = StoryTask(kind, 12)
    batch = task.sample(40, length, torch.Generator().manual_seed(0))
    for tokens, targets, weights in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.weights, strict=True):
        words = [VOCABULARY[token] for token in tokens]
        marks = [place for place, word in enumerate(words) if word == "?"]
        assert weights.nonzero()[:, 0].tolist() == marks
        assert len(marks) == task.num_questions
        first = max(place for place in range(marks[0]) if words[place] == "where")
        where, trails = _trails(" ".join(words[:first]))
        starts = [first, *(mark + 2 for mark in marks[:-1])]
        for start, mark in zip(starts, marks, strict=True):
            answer = VOCABULARY[targets[mark]]
            assert answer in PLACES
            assert answer == words[mark + 1]
            assert answer == _answer(" ".join(words[start : mark + 1]), where, trails)


def test_facts_are_spread_over_the_prose():
    """In a long story the facts lie in its whole length, not in a row."""
    batch = StoryTask("one fact", 8).sample(60, 400, torch.Generator().manual_seed(1))
    people = torch.tensor([VOCABULARY.index(person) for person in PEOPLE])
    places = torch.isin(batch.tokens, people).nonzero()[:, 1]
    assert int((places < 100).sum()) > 60
    assert int(((places > 200) & (places < 370)).sum()) > 60


def test_words_are_few_and_all_are_known():
    """Every word has one token, and people, places and things are among them."""
    assert len(VOCABULARY) == len(set(VOCABULARY)) < 150
    assert set(PEOPLE) | set(PLACES) | set(THINGS) <= set(VOCABULARY)
    assert StoryTask().vocab_size == len(VOCABULARY)


def test_a_story_without_room_is_refused():
    """The message says how many words are needed."""
    with pytest.raises(ValueError, match="need 75 words, not 74"):
        StoryTask().sample(1, 74, torch.Generator())
