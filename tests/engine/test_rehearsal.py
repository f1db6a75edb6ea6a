"""What a consolidation reads: every new piece as often as asked, half of it the past, nothing behind itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hope_server.engine.rehearsal import Piece, RehearsalSettings, Step, Tokens, plan_rehearsal

SETTINGS = RehearsalSettings(group=24, passage=12, chain=3)


def pieces_of(shapes: list[tuple[int, int, int]], first: int = 0) -> list[Piece]:
    """Pieces of (length, passes, paragraphs further on); the first token of each is its number, from `first`."""
    pieces, paragraph = [], 0
    for number, (length, passes, further) in enumerate(shapes):
        paragraph += further
        pieces.append(Piece((first + number, *[-1] * (length - 1)), passes, paragraph))
    return pieces


def plan(new: list[Piece], old: list[Piece], seed: int = 3, settings: RehearsalSettings = SETTINGS) -> list[Step]:
    """The plan with passages spelt as they are."""
    return plan_rehearsal(new, old, seed, settings, lambda passage: passage)


def passages(steps: list[Step]) -> list[Tokens]:
    """Every passage of a plan."""
    return [passage for step in steps for chain in step for passage in chain.passages]


def heads(steps: list[Step]) -> Counter[int]:
    """How often each piece is read, by its first token."""
    return Counter(token for passage in passages(steps) for token in passage if token >= 0)


SHAPES = st.lists(st.tuples(st.integers(1, 15), st.integers(0, 4), st.integers(0, 1)), max_size=12)


@given(SHAPES, SHAPES, st.integers(0, 99))
def test_every_new_piece_is_read_as_often_as_it_asks(
    new: list[tuple[int, int, int]], old: list[tuple[int, int, int]], seed: int
) -> None:
    """Neither the past nor the order changes how often; a past piece that asks for nothing is never read."""
    fresh, past = pieces_of(new), pieces_of(old, first=1000)
    found = heads(plan(fresh, past, seed))
    assert {token: found[token] for token in range(len(fresh))} == {n: piece.passes for n, piece in enumerate(fresh)}
    assert not any(found[1000 + number] for number, piece in enumerate(past) if piece.passes == 0)


@given(SHAPES, SHAPES, st.integers(0, 99))
def test_steps_and_chains_keep_their_limits(
    new: list[tuple[int, int, int]], old: list[tuple[int, int, int]], seed: int
) -> None:
    """Each half of a step fits its share, and each chain the group, unless a single passage is longer than that."""
    fresh, past = pieces_of(new), pieces_of(old, first=1000)
    share = SETTINGS.group // 2 if any(piece.passes for piece in past) else SETTINGS.group
    for step in plan(fresh, past, seed):
        for is_past in (False, True):
            half = [p for chain in step for p in chain.passages if (max(p) >= 1000) == is_past]
            assert len(half) <= 1 or sum(map(len, half)) <= share
        for chain in step:
            assert 1 <= len(chain.passages) <= SETTINGS.chain
            assert len(chain.passages) == 1 or sum(map(len, chain.passages)) <= SETTINGS.group
            assert len(set(chain.passages)) == len(chain.passages)


@given(SHAPES, st.integers(0, 99))
def test_passages_are_neighbours_of_one_paragraph(new: list[tuple[int, int, int]], seed: int) -> None:
    """A passage of several pieces holds consecutive ones of one paragraph, within the length of a passage."""
    fresh = pieces_of([(length, 1, further) for length, _, further in new])
    for passage in passages(plan(fresh, [], seed)):
        numbers = [token for token in passage if token >= 0]
        assert all(right == left + 1 for left, right in pairwise(numbers))
        assert len({fresh[number].paragraph for number in numbers}) == 1
        assert len(numbers) == 1 or len(passage) <= SETTINGS.passage


@given(SHAPES, st.integers(0, 99))
def test_a_cue_is_a_run_of_words_of_the_first_passage(new: list[tuple[int, int, int]], seed: int) -> None:
    """What a question mentions stands in what answers it."""
    fresh = [
        replace(piece, tokens=tuple(range(n * 20, n * 20 + len(piece.tokens))))
        for n, piece in enumerate(pieces_of(new))
    ]
    for step in plan(fresh, [], seed):
        for chain in step:
            first, cue = chain.passages[0], chain.cue
            assert cue == () or any(first[i : i + len(cue)] == cue for i in range(len(first)))
            assert len(cue) <= 6


def test_chains_open_with_and_without_a_question() -> None:
    """Both ways are practised, about as often."""
    steps = plan(pieces_of([(5, 20, 1)] * 6), [])
    cues = [bool(chain.cue) for step in steps for chain in step]
    assert 0.25 < sum(cues) / len(cues) < 0.75


def test_neighbours_are_sometimes_read_together_and_sometimes_apart() -> None:
    """A sentence is learned both with what follows it and alone."""
    found = Counter(len([t for t in p if t >= 0]) for p in passages(plan(pieces_of([(4, 12, 0)] * 6), [])))
    assert found[1] > 0
    assert found[3] > 0


def test_one_seed_gives_one_plan_and_another_seed_another() -> None:
    """A plan can be made anew after a restart; blocks do not repeat each other's order."""
    new, old = pieces_of([(5, 3, 1)] * 5), pieces_of([(4, 2, 1)] * 5, first=1000)
    assert plan(new, old, 7) == plan(new, old, 7)
    assert plan(new, old, 7) != plan(new, old, 8)


def test_the_order_changes_from_pass_to_pass() -> None:
    """Shuffled anew each time: not all passes are alike."""
    new = pieces_of([(12, 4, 1)] * 6)
    order = [token for passage in passages(plan(new, [])) for token in passage if token >= 0]
    assert len({tuple(order[start : start + 6]) for start in range(0, 24, 6)}) > 1


def test_half_of_each_step_is_the_past_in_proportion_to_its_passes() -> None:
    """Old and new take about the same number of tokens; what was to be rehearsed more often comes back more often."""
    new = pieces_of([(4, 60, 1)] * 3)
    old = pieces_of([(4, 1, 1), (4, 9, 1)] * 4, first=1000)
    steps = plan(new, old)
    tokens = Counter((max(passage) >= 1000) for passage in passages(steps) for _ in passage)
    assert 0.4 < tokens[True] / tokens.total() < 0.6
    found = heads(steps)
    rare, often = (sum(found[1000 + n] for n in range(start, 8, 2)) for start in (0, 1))
    assert often > 1.5 * rare > 0


def test_nothing_to_rehearse_is_no_step() -> None:
    """No pieces, or none that asks for a pass, whatever the past."""
    old = pieces_of([(4, 5, 1)] * 3)
    assert plan([], old) == []
    assert plan(pieces_of([(4, 0, 1)] * 3), old) == []


def test_passages_are_spelt_before_they_are_strung_together() -> None:
    """Chains and cues hold the spelling for the beginning of a line, of old passages and of new."""
    new, old = pieces_of([(4, 3, 1)] * 3), pieces_of([(4, 2, 1)] * 3, first=1000)
    plain = plan_rehearsal(new, old, 5, SETTINGS, lambda passage: passage)
    spelt = plan_rehearsal(new, old, 5, SETTINGS, lambda passage: tuple(t + 5000 if t >= 0 else t for t in passage))
    assert heads(spelt) == Counter({token + 5000: count for token, count in heads(plain).items()})
