"""What the bench compares with: transformers on our weights, and texts looked up by their embeddings."""

from __future__ import annotations

import pytest
import torch
from toys import MODEL, make_params, make_tokenizer, tokenizer_source

from hope_server.errors import StartupError
from hope_server.evaluation import learning_baselines
from hope_server.evaluation.learning_baselines import Unavailable, judged, retrieval, run_baseline
from hope_server.evaluation.learning_bench import LearningOptions
from hope_server.evaluation.learning_facts import Question, draw_facts
from hope_server.evaluation.learning_texts import Window
from hope_server.evaluation.learning_trials import Sizes
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import random_weights

pytest.importorskip("transformers", reason="the baselines of training need transformers")

from hope_server.evaluation import learning_peers
from hope_server.evaluation.learning_peers import Embedder, FineTuned

QUESTION = Question("Where is it?", "It is in the")


@pytest.fixture
def tuned():
    """transformers' model on the toy's weights."""
    return FineTuned(learning_peers._make_llama(MODEL, random_weights(MODEL, 0, torch.float32)), make_tokenizer())


def test_their_model_computes_what_ours_does(tuned):
    """The same weights give the same log-probabilities: the comparison is of ways to learn, not of models."""
    config = HopeConfig(MODEL, WindowSpec(320, 2, "model"))
    params = make_params(torch.float32)
    model = HopeModel(config, torch.float32, params)
    tokens = make_tokenizer().encode("So it goes.")
    past = model.empty_past(1, torch.float32)
    with torch.no_grad():
        sight = model.sight(past.window, len(tokens))
        blocks = range(MODEL.num_layers)
        hidden, _ = model.run_blocks(
            params, params.embed[torch.tensor(tokens)][None], past, model.initial_memories(), sight, blocks
        )
        logits = model.logits(params, hidden[0]).log_softmax(-1)
    expected = sum(float(logits[place - 1, tokens[place]]) for place in range(2, len(tokens)))
    # float32 through four blocks, summed in another order.
    assert tuned.loss(Window("a", "So", " it goes.")) == (pytest.approx(expected, rel=1e-4), len(tokens) - 2)


def test_candidates_of_different_lengths_do_not_change_each_other(tuned):
    """Each scores in company as it does alone."""
    together = tuned.scores(QUESTION, ["barn", "very old boathouse", "x"])
    alone = [tuned.scores(QUESTION, [each])[0] for each in ("barn", "very old boathouse", "x")]
    assert [score.num_tokens for score in together] == [5, 19, 2]
    # float32 with other shapes of the same products.
    assert [s.logprob for s in together] == pytest.approx([s.logprob for s in alone], rel=1e-4)


def test_training_makes_what_was_read_likelier(tuned):
    """Every weight is trained, the same way for the same seed, and the model is back to answering."""
    window = Window("a", "Mira", " keeps it in the barn.")
    before, _ = tuned.loss(window)
    tuned.train(["Mira keeps it in the barn.", "Otto plays the tuba."], 20, 0)
    assert tuned.loss(window)[0] > before
    assert isinstance(tuned.reply("Who?"), str)
    assert tuned.num_bytes == 2 * sum(tensor.numel() for tensor in random_weights(MODEL, 0, torch.float32).values())


class FakeModel:
    """Its last hidden state holds the tokens themselves."""

    def __call__(self, tokens):
        states = torch.nn.functional.one_hot(tokens, 300).float()
        return type("Output", (), {"last_hidden_state": states})


def test_embeddings_are_means_of_length_one():
    """A text embeds alike alone and in company."""
    from tokenizers import Tokenizer

    embedder = Embedder(FakeModel(), Tokenizer.from_str(tokenizer_source().tokenizer_json))
    both = embedder.embed(["aab", "b"])
    assert both.norm(dim=-1).tolist() == pytest.approx([1.0, 1.0])
    assert torch.equal(both[:1], embedder.embed(["aab"]))
    assert sorted(both[0][both[0] > 0].tolist()) == pytest.approx([5**-0.5, 2 * 5**-0.5])


class FakeRooms:
    """A server that answers with the request itself, and finds candidates likely that stand in it."""

    def __init__(self, folder):
        self.options = LearningOptions((0,), (), (), Sizes(facts=8, free=8), folder, folder, folder)
        self.asked: list[str] = []

    def plain(self):
        return self

    def untaught(self):
        return self

    def score(self, continuations, *, messages, window):
        text = messages[0]["content"]
        return [learning_peers.Score(-1.0 if each.strip() in text else -2.0, 1) for each in continuations]

    def chat(self, prompt, **options):
        self.asked.append(prompt)
        return type("Reply", (), {"text": prompt})


def test_what_is_in_the_prompt_is_the_whole_conversation_or_nothing(tmp_path):
    """Without memory a request holds the question alone; with the facts in it, all that was said."""
    rooms = FakeRooms(tmp_path)
    assert learning_baselines.no_memory(0, rooms)["rank_accuracy"] == 0.0
    assert set(rooms.asked) == {fact.question.text for fact in draw_facts(8, 0)}
    values = learning_baselines.in_prompt(0, rooms)
    assert values["exact"] == 1.0 and values["state_bytes"] > 300


def test_the_nearest_statements_are_looked_up_for_each_question(tmp_path, monkeypatch):
    """Four statements stand before the question, by their likeness to it."""

    class ByName:
        """Embeds a text by whom it speaks of."""

        @classmethod
        def load(cls, cache_dir):
            return cls()

        def embed(self, texts):
            abouts = [fact.about for fact in draw_facts(8, 0)]
            return torch.tensor([[float((who or what) in text) for who, what in abouts] for text in texts])

    monkeypatch.setattr(learning_peers, "Embedder", ByName)
    rooms = FakeRooms(tmp_path)
    values = retrieval(0, rooms)
    assert values["exact"] == 1.0
    assert all(len(prompt.splitlines()) == 5 for prompt in rooms.asked)


@pytest.mark.parametrize(
    "error", [StartupError("package x cannot be fetched"), ImportError("package x cannot be fetched")]
)
def test_what_a_baseline_lacks_is_its_reason_to_be_left_out(tmp_path, monkeypatch, error):
    """A missing package and one that cannot be fetched are told alike."""

    def fail(seed, rooms):
        raise error

    monkeypatch.setitem(learning_baselines.BASELINES, "fine_tuning", fail)
    with pytest.raises(Unavailable, match="package x cannot be fetched"):
        run_baseline("fine_tuning", 0, FakeRooms(tmp_path))


def test_baselines_are_judged_like_sessions(tuned):
    """The same questions, the same rule, by the names of the table."""
    values = judged(draw_facts(2, 0), tuned, 0)
    assert set(values) == {"rank_accuracy", "logprob", "exact", "paraphrase"}
