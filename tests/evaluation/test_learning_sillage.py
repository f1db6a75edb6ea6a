"""sillage beside us: its memories are mixed in as it does, and its wheel is the one that was looked at."""

from __future__ import annotations

import hashlib

import pytest
import torch
from toys import MODEL, make_tokenizer

from hope_server.errors import StartupError
from hope_server.evaluation.learning_facts import Question
from hope_server.evaluation.learning_texts import Window
from hope_server.model.params import random_weights
from hope_server.training import corpora
from hope_server.training.corpora import fetch_wheel

pytest.importorskip("transformers", reason="the baselines of training need transformers")

from hope_server.evaluation.learning_peers import FineTuned, _make_llama
from hope_server.evaluation.learning_sillage import READINGS, Sillage


class FakeMemory:
    """Knows nothing but what follows one token; keeps the tokens that its keys were made of."""

    def __init__(self, after: int = -1, then: int = 0) -> None:
        self.after, self.then = after, then
        self.stream: list[int] = []

    def set_vocab(self, size):
        assert size == MODEL.vocab_size

    def new_stream(self):
        self.stream = []

    def thresholds(self):
        return 0.0, 0.0

    def step_key(self, token):
        self.stream.append(token)
        return token

    def adapt(self, logits, hidden):
        return logits, None

    M = None

    def scores(self, memory, key):
        return None, key

    def cold_lookup(self):
        return None

    def mix_full(self, base, found, semantic, cold, threshold):
        if found == self.after:
            base = base * 0
            base[self.then] = 1.0
        return base

    def sizes(self):
        return {"a": 3, "b": 4}


class FakeAssistant:
    """Keeps what it read."""

    def __init__(self, mem):
        self.mem, self.texts = mem, []

    def read_text(self, text):
        self.texts.append(text)


@pytest.fixture
def llama():
    """transformers' model on the toy's weights."""
    return _make_llama(MODEL, random_weights(MODEL, 0, torch.float32))


def test_with_an_empty_memory_it_is_the_model_itself(llama):
    """Candidates and texts score as they do without it."""
    tokenizer = make_tokenizer()
    memory, plain = Sillage(FakeAssistant(FakeMemory()), llama, tokenizer), FineTuned(llama, tokenizer)
    question = Question("Where?", "In the")
    ours = [score.logprob for score in memory.scores(question, ["barn", "old mill"])]
    # float32, probabilities in place of their logarithms.
    assert ours == pytest.approx([score.logprob for score in plain.scores(question, ["barn", "old mill"])], rel=1e-4)
    window = Window("a", "So", " it goes.")
    assert memory.loss(window)[0] == pytest.approx(plain.loss(window)[0], rel=1e-4)
    assert memory.reply("Who?") == plain.reply("Who?")


def test_what_its_memory_knows_decides(llama):
    """A token that it has seen follow another is what it says, and its keys have seen the whole question."""
    tokenizer = make_tokenizer()
    (colon,) = tokenizer.encode(":")
    (letter,) = tokenizer.encode("z")
    fake = FakeMemory(colon, letter)
    memory = Sillage(FakeAssistant(fake), llama, tokenizer)
    assert memory.loss(Window("a", "a:", "z")) == (0.0, 1)
    assert tokenizer.decode(fake.stream) == "a:"
    assert memory.num_bytes == 7


def test_it_reads_as_often_as_it_takes(llama):
    """Once is too little for its memories to speak."""
    assistant = FakeAssistant(FakeMemory())
    Sillage(assistant, llama, make_tokenizer()).read("Mira keeps it.")
    assert assistant.texts == ["Mira keeps it."] * READINGS


def test_a_wheel_that_is_another_one_is_not_used(tmp_path, monkeypatch):
    """It is fetched once, and what does not have the expected digest is removed."""
    fetched = []

    def fetch(_name, _command, folder, *, is_needed):
        fetched.append(folder)
        (folder / "some_thing-1.0-py3-none-any.whl").write_bytes(b"code")
        return b""

    monkeypatch.setattr(corpora, "_run", fetch)
    right = hashlib.sha256(b"code").hexdigest()
    path = fetch_wheel("some-thing==1.0", tmp_path / "cache", right)
    assert fetch_wheel("some-thing==1.0", tmp_path / "cache", right) == path and len(fetched) == 1
    with pytest.raises(StartupError, match="SHA-256 differs"):
        fetch_wheel("some-thing==1.0", tmp_path / "cache", "0" * 64)
    assert not path.exists()
