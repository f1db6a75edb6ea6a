"""How the journal cuts what a session reads: by the token stream alone, into sentences and paragraphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import make_tokenizer

from hope_server.engine.journal import Journal
from hope_server.engine.rehearsal import Piece

TOKENIZER = make_tokenizer()
WORDS = st.lists(
    st.sampled_from(["Mira", "Dr", ".", "!", "?", ":", " ", "  ", "\n", "\n\n", '"', ")", "- a", "3", ".5", "é", "。"]),
    max_size=40,
).map("".join)


def read(text: str, journal: Journal | None = None, source: str | None = "user", passes: int = 2) -> Journal:
    """A journal after a text, token by token."""
    journal = journal or Journal()
    for token in TOKENIZER.encode(text):
        journal.read(token, TOKENIZER.token_text(token), passes, source)
    return journal


def sentences(journal: Journal) -> list[str]:
    """The pieces as text, the open one last."""
    found = [TOKENIZER.decode(list(piece.tokens)) for piece in journal.pieces]
    return [*found, TOKENIZER.decode(journal.open_tokens)] if journal.open_tokens else found


def paragraphs(journal: Journal) -> list[list[str]]:
    """The closed pieces as text, by paragraph."""
    journal = journal.copy()
    journal.close()
    found: dict[int, list[str]] = {}
    for piece in journal.pieces:
        found.setdefault(piece.paragraph, []).append(TOKENIZER.decode(list(piece.tokens)).strip())
    return list(found.values())


def test_a_text_is_cut_into_its_sentences() -> None:
    """A piece ends where an end mark is followed by space, closing quotes included; the last stays open."""
    journal = read('Mira has a cat. It sleeps! "Really?" he said (she did.) And so on')
    assert sentences(journal) == ["Mira has a cat.", " It sleeps!", ' "Really?"', " he said (she did.)", " And so on"]
    assert len(journal.pieces) == 4
    assert {piece.paragraph for piece in journal.pieces} == {0}


def test_a_mark_inside_a_word_does_not_end_a_sentence() -> None:
    """Numbers and names with dots stay whole."""
    assert sentences(read("Pi is 3.14 and a.b is at x.org/y?z=1 now")) == ["Pi is 3.14 and a.b is at x.org/y?z=1 now"]


def test_an_abbreviation_costs_a_cut_and_nothing_else() -> None:
    """A sentence cut at `Dr.` keeps all its tokens, in order and in one paragraph."""
    text = "Dr. Ada met Mr. Bell on the 3. of May. They spoke."
    assert "".join(sentences(read(text))) == text
    assert len(paragraphs(read(text))) == 1


@given(WORDS, st.sets(st.integers(0, 100), max_size=5))
def test_cuts_do_not_depend_on_how_the_text_was_split_into_turns(text: str, splits: set[int]) -> None:
    """A journal that is copied between turns, as a session's is, ends as one that read everything at once."""
    tokens = TOKENIZER.encode(text)
    whole, pieces = Journal(), Journal()
    for number, token in enumerate(tokens):
        if number in splits:
            pieces = pieces.copy()
        for journal in (whole, pieces):
            journal.read(token, TOKENIZER.token_text(token), 2, "user")
    assert whole == pieces


@given(WORDS)
def test_no_token_is_lost_but_line_breaks(text: str) -> None:
    """Pieces and the open sentence together are the text without the line breaks that ended paragraphs."""
    assert "".join(sentences(read(text))).replace("\n", "") == text.replace("\n", "")


@given(WORDS)
def test_paragraphs_count_up(text: str) -> None:
    """Numbers never fall, and there is no empty piece."""
    journal = read(text)
    numbers = [piece.paragraph for piece in journal.pieces]
    assert numbers == sorted(numbers)
    assert all(piece.tokens for piece in journal.pieces)


def test_a_copy_is_independent() -> None:
    """What a turn reads into its copy is not in the committed journal."""
    journal = read("One. Two")
    before = repr(journal)
    read(" more. And more.", journal.copy())
    assert repr(journal) == before


def test_a_wrapped_line_is_one_sentence() -> None:
    """A line break inside a sentence, as in mail, is space."""
    assert paragraphs(read("The violin is\nin the red\nbarn. It is old.")) == [
        ["The violin is\nin the red\nbarn.", "It is old."]
    ]


@pytest.mark.parametrize(
    "text", ["One is here.\nTwo is there.", "One is here.\n\nTwo is there.", "One is here.\n\n\nTwo is there."]
)
def test_a_line_break_behind_a_sentence_ends_the_paragraph(text: str) -> None:
    """Lines that end with an end mark, and empty lines, part paragraphs; the breaks belong to no piece."""
    assert paragraphs(read(text)) == [["One is here."], ["Two is there."]]
    assert not any("\n" in sentence for sentence in sentences(read(text)))


def test_a_list_with_end_marks_is_one_piece_an_item() -> None:
    """Items that end like sentences are pieces of their own, without their line breaks."""
    assert paragraphs(read("Things:\n- a cat.\n- a dog!\n")) == [["Things:"], ["- a cat."], ["- a dog!"]]


def test_an_endless_sentence_is_cut_at_the_longest_piece() -> None:
    """Text without any mark still becomes pieces of at most the limit, in one paragraph."""
    journal = read("x" * 100)
    assert [len(piece.tokens) for piece in journal.pieces] == [48, 48]
    assert len(journal.open_tokens) == 4
    assert {piece.paragraph for piece in journal.pieces} == {0}


def test_text_that_does_not_teach_ends_the_paragraph_and_is_not_kept() -> None:
    """A tool's result, or the template between two messages, parts what was said before and after."""
    journal = read(" I do.", read("secret. ", read("I like tea"), source=None))
    assert paragraphs(journal) == [["I like tea"], ["I do."]]
    assert not any("secret" in sentence for sentence in sentences(journal))


def test_another_speaker_begins_another_paragraph() -> None:
    """A piece has one source and the passes of that source."""
    journal = read(" Yes, I know.", read("My cat is red", passes=5), source="assistant", passes=1)
    journal.end_paragraph()
    assert [(piece.source, piece.passes, piece.paragraph) for piece in journal.pieces] == [
        ("user", 5, 0),
        ("assistant", 1, 1),
    ]


def test_ending_a_paragraph_twice_is_ending_it_once() -> None:
    """Nothing in between, no new number and no empty piece."""
    journal = read("One.")
    journal.end_paragraph()
    before = journal.copy()
    journal.end_paragraph()
    journal.close()
    assert journal == before


@pytest.mark.parametrize(("keeps_waiting", "kept"), [(True, 4), (False, 6)])
def test_trimming_drops_the_oldest_pieces(*, keeps_waiting: bool, kept: int) -> None:
    """Those that no consolidation has taken yet too, unless they are to be kept, however long the journal became."""
    pieces = [Piece((number,) * 10, 1, number) for number in range(6)]
    journal = Journal(list(pieces), num_consolidated=4, max_tokens=35)
    journal.trim(keeps_waiting=keeps_waiting)
    assert journal.pieces == pieces[3:]
    assert journal.num_consolidated == 1
    assert journal.unconsolidated() == pieces[4:]
    journal.max_tokens = 5
    journal.trim(keeps_waiting=keeps_waiting)
    assert journal.pieces == pieces[kept:]
    assert (journal.num_consolidated, journal.unconsolidated()) == (0, pieces[kept:])


def test_trimming_a_journal_within_its_limit_changes_nothing() -> None:
    """Exactly at the limit, every piece stays."""
    journal = Journal([Piece((1, 2, 3), 1, 0)], num_consolidated=1, max_tokens=3)
    before = journal.copy()
    journal.trim()
    assert journal == before


def test_a_full_stop_of_a_script_without_spaces_ends_a_sentence() -> None:
    """Nothing stands behind it but the next sentence."""
    journal = Journal()
    for token, text in enumerate(["米", "拉", "。", "她", "。", "是"]):
        journal.read(token, text, 2, "user")
    assert [piece.tokens for piece in journal.pieces] == [(0, 1, 2), (3, 4)]
    assert journal.open_tokens == [5]


@pytest.mark.parametrize("blanks", [1, 7, 8, 9, 40])
def test_a_sentence_behind_which_much_is_blank_is_kept(blanks: int) -> None:
    """However many spaces follow it before the turn ends."""
    journal = Journal(max_piece_tokens=100)
    for token, text in enumerate(["My", " cat", " is", " red", *[" "] * blanks]):
        journal.read(token, text, 2, "user")
    journal.read(0, "", 0, None)
    assert [piece.tokens for piece in journal.pieces] == [tuple(range(4 + blanks))]
