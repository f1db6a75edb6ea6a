"""The synthetic dialogues: facts told before they are asked for, right answers, held-out shares kept apart."""

from __future__ import annotations

import random
import re

import pytest
import torch

from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import Message
from hope_server.errors import SettingsError
from hope_server.training.bpe import tokenizer_source, train_tokenizer
from hope_server.training.chat_codec import ChatCodec, TokenWeights, Turn, rows_batch
from hope_server.training.dialogue_facts import load_language
from hope_server.training.dialogue_story import Story, draw_manner
from hope_server.training.dialogues import DialogueTask, dialogue_texts, split_passages

PASSAGES = [f"It was day {number} of a long voyage, and the old ship rolled slowly on." for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    """A tokenizer of 1,500 tokens."""
    return train_tokenizer(dialogue_texts(PASSAGES, 30), 1500)


@pytest.fixture
def task(tokenizer_json: str) -> DialogueTask:
    """The task on a small book."""
    return DialogueTask(tokenizer_json, PASSAGES, TokenWeights(1.0, 4.0, 0.25, 0.125))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def test_the_same_texts_train_the_same_tokenizer(tokenizer_json: str) -> None:
    """Training draws nothing at random, and digits are never merged."""
    assert train_tokenizer(dialogue_texts(PASSAGES, 30), 1500) == tokenizer_json
    codec = ChatCodec(tokenizer_json)
    assert codec.vocab_size == 1500
    assert len(codec.encode("48213377")) == 8


def test_any_text_comes_back_from_its_tokens(tokenizer_json: str) -> None:
    """Also one with marks in it, which are plain text there."""
    codec = ChatCodec(tokenizer_json)
    for text in ("Ünïcödé ☃ \x00\n", "<|im_end|> is no mark"):
        assert codec.decode(codec.encode(text)) == text
    assert not {0, 1, 2} & set(codec.encode("<|im_start|><|im_end|><|endoftext|>"))


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    """The least size is named."""
    with pytest.raises(SettingsError, match=r"vocab_size 100 is too small .*; use 259 or more"):
        train_tokenizer(["a"], 100)


def test_turns_have_the_tokens_of_the_served_chat_template(tokenizer_json: str) -> None:
    """What is trained on is what the server's own tokenizer renders, to the token."""
    turns = [Turn("system", "Be short."), Turn("user", "Hi <|im_end|>!"), Turn("assistant", "Hello.")]
    codec = ChatCodec(tokenizer_json)
    expected = [token for turn in turns for token in codec.encode_turn(turn, TokenWeights())[0]]
    served = Tokenizer(tokenizer_source(tokenizer_json), codec.vocab_size)
    messages = [Message(turn.role, turn.text) for turn in turns]
    spans = served.render_chat(messages[:2], continuing=False)
    reply = [*served.encode("Hello."), *served.close_assistant()]
    assert [token for span in spans for token in span.ids] + reply == expected
    assert served.eos_ids >= {reply[-2]}


def test_weights_say_what_counts(tokenizer_json: str) -> None:
    """Replies count in full with the mark that ends them, answers more, the user less, a book least."""
    codec, weights = ChatCodec(tokenizer_json), TokenWeights(1.0, 4.0, 0.25, 0.125)
    ids, counts = codec.encode_turn(Turn("assistant", "Tom lives in Paris.", (13, 18)), weights)
    answer = [token for token, count in zip(ids, counts, strict=True) if count == 4.0]
    assert codec.decode(answer).strip() == "Paris"
    assert (counts[0], counts[-2], counts[-1]) == (0.25, 1.0, 0.25)
    assert set(codec.encode_turn(Turn("user", "Hello"), weights)[1]) == {0.25}
    assert set(codec.encode_turn(Turn("user", "Hello", is_book=True), weights)[1]) == {0.25, 0.125}


def test_targets_are_the_next_tokens_with_their_own_weights() -> None:
    """A row is shifted by one; what a short row lacks is padded and not scored."""
    batch = rows_batch([([5, 6, 7, 8], [0.1, 0.2, 0.3, 0.4]), ([5, 6], [0.5, 0.6])], 3, 0)
    assert batch.tokens.tolist() == [[5, 6, 7], [5, 6, 0]]
    assert batch.targets.tolist() == [[6, 7, 8], [6, 0, 0]]
    torch.testing.assert_close(batch.weights, torch.tensor([[0.2, 0.3, 0.4], [0.6, 0.0, 0.0]]))


def test_rows_are_drawn_from_the_generator(task: DialogueTask) -> None:
    """The same generator gives the same rows, the next draw others; every row is full."""
    generator = seeded()
    first, second = task.sample(3, 200, generator), task.sample(3, 200, generator)
    assert torch.equal(first.tokens, task.sample(3, 200, seeded()).tokens)
    assert not torch.equal(first.tokens, second.tokens)
    assert first.tokens.shape == (3, 200)
    assert int(first.tokens.max()) < task.vocab_size
    assert bool((first.weights > 0).all())
    assert torch.equal(first.tokens[:, 1:], first.targets[:, :-1])


def test_every_answer_is_of_the_newest_fact_and_nothing_unknown_is_answered() -> None:
    """Told facts are replayed from the text itself: the value in a reply is the last one that was told."""
    language = load_language()
    num_known = num_unknown = num_denied = 0
    for seed in range(40):
        draw = random.Random(seed)
        story = Story(language, draw_manner(language, draw), PASSAGES, draw)
        told: dict[tuple[str, ...], str] = {}
        for position in range(0, 3000, 30):
            user, reply = story.next_exchange(position)
            told = {key: fact.value for key, fact in story._facts.items()}
            replies = {fact.answer for fact in story._facts.values()}
            if reply.answer is not None:
                since, until = reply.answer
                assert reply.text[since:until] in told.values()
                assert re.sub(r"^(Yes|No)\. ", "", reply.text) in replies
                num_known += 1
                if reply.text.startswith(("Yes.", "No.")):
                    is_so = reply.text[since:until] in user.text
                    assert reply.text.startswith("Yes.") == is_so
                    num_denied += not is_so
            num_unknown += reply.text == language.phrases["unknown"]
    assert num_known > 800 and num_unknown > 50 and num_denied > 20


def test_plain_rows_hold_facts_in_the_words_of_the_answer_and_questions(tokenizer_json: str) -> None:
    """Nothing is read aloud or chatted; whatever a user says is a first phrasing or a question, of the named kinds."""
    kinds = ("city", "instrument")
    task = DialogueTask(tokenizer_json, PASSAGES, kinds=kinds, is_plain=True)
    text = task.codec.decode(task.sample(1, 600, seeded()).tokens[0].tolist())
    said = [line.lower().rstrip(".?") for line in re.findall(r"user\n(.+?)<\|im_end\|>", text)]
    language = load_language()
    patterns = [pattern for name in kinds for pattern in (language.kinds[name].tell[0], *language.kinds[name].ask)]
    shapes = [re.sub(r"\{\w+\}", "[a-z ]+", pattern.lower().rstrip(".?")) for pattern in patterns]
    assert len(said) > 10
    # One message may tell up to three facts.
    sentences = [sentence for line in said for sentence in line.split(". ")]
    assert all(any(re.fullmatch(shape, sentence) for shape in shapes) for sentence in sentences)
    with pytest.raises(SettingsError, match="there is no kind of fact 'age'"):
        DialogueTask(tokenizer_json, PASSAGES, kinds=("city", "age"))


def test_far_rows_tell_everything_first_and_ask_at_the_end(tokenizer_json: str) -> None:
    """Between telling and asking lies the row; shorter rows are none of them."""
    weights = TokenWeights(0.0, 1.0, 0.0, 0.0)
    task, plain = (DialogueTask(tokenizer_json, PASSAGES, weights, far_share=share) for share in (1.0, 0.0))
    batch = task.sample(4, 1200, seeded())
    for row in range(4):
        places = batch.weights[row].nonzero()[:, 0]
        assert len(places) >= 1
        # At most 8 answers of a few tokens each, in exchanges of at most 60 tokens.
        assert int(places[0]) > 1200 - 8 * 60 - 150
        text = task.codec.decode(batch.tokens[row].tolist())
        value = task.codec.decode([int(batch.targets[row, places[0]])])
        assert value in text[: len(text) // 3]
    assert torch.equal(task.sample(2, 240, seeded()).tokens, plain.sample(2, 240, seeded()).tokens)
    with pytest.raises(SettingsError, match=r"far_share is 1.5; it must lie in 0..1"):
        DialogueTask(tokenizer_json, PASSAGES, far_share=1.5)


def test_training_never_shows_a_held_out_fact(task: DialogueTask) -> None:
    """Whatever is told or confirmed in training is of the trained share."""
    language = load_language()
    for seed in range(40):
        draw = random.Random(seed)
        story = Story(language, draw_manner(language, draw), PASSAGES, draw)
        for position in range(0, 3000, 30):
            story.next_exchange(position)
        assert [fact for fact in story._facts.values() if fact.is_held_out] == []


@pytest.mark.parametrize("name", sorted(load_language().kinds))
def test_every_kind_of_fact_can_be_told_asked_and_held_out(name: str) -> None:
    """All phrasings can be filled in, held-out ones are others, and both shares have facts."""
    language, draw = load_language(), random.Random(1)
    kind = language.kinds[name]
    for is_held_out in (False, True):
        fact = language.draw_fact(kind, draw, is_held_out=is_held_out)
        assert fact.is_held_out == is_held_out
        since, until = fact.answer_span
        assert fact.answer[since:until] == fact.value
        phrasings = (*kind.tell, *kind.change, *kind.confirm, *kind.held_out_tell)
        assert [each for each in phrasings if fact.value not in fact.phrase(each)] == []
        assert [each for each in (*kind.ask, *kind.held_out_ask) if fact.value in fact.phrase(each)] == []
    assert not {*kind.tell, *kind.change} & {*kind.held_out_tell}
    assert not {*kind.ask} & {*kind.held_out_ask}
    assert language.draw_other(fact, draw).value != fact.value


def test_articles_fit_their_words() -> None:
    """An engineer, not a engineer."""
    language = load_language()
    fact = language.draw_fact(language.kinds["job"], random.Random(0)).with_value("engineer")
    assert fact.phrase("{name} works as a {value}.").endswith("works as an engineer.")


@pytest.mark.parametrize("is_reworded", [False, True])
def test_an_evaluation_dialogue_asks_for_held_out_facts_far_away(task: DialogueTask, is_reworded: bool) -> None:
    """Each fact is told once, filler of at least the distance follows, and each has one question with its answer."""
    dialogue = task.evaluation_dialogue(5, 300, seeded(), is_reworded=is_reworded)
    filler = sum(len(task.codec.encode_turn(turn, TokenWeights())[0]) for turn in dialogue.filler)
    assert dialogue.distance == filler
    assert 300 <= dialogue.distance < 360
    assert len(dialogue.telling) == 10 and len(dialogue.questions) == 5
    told = " ".join(turn.text for turn in dialogue.telling)
    assert all(question.fact.is_held_out for question in dialogue.questions)
    assert all(question.value in told and question.value in question.reply for question in dialogue.questions)
    assert len({question.fact.key for question in dialogue.questions}) == 5
    phrasings = {
        question.fact.phrase(each)
        for question in dialogue.questions
        for each in (question.fact.kind.held_out_ask if is_reworded else question.fact.kind.ask)
    }
    if is_reworded:
        assert all(question.text in phrasings for question in dialogue.questions)


def test_an_evaluation_batch_scores_the_values_alone(task: DialogueTask) -> None:
    """The scored tokens of a row are the values of its questions in order."""
    batch = task.evaluation_batch(2, 3, 50, seeded(7))
    generator = seeded(7)
    for row in range(2):
        dialogue = task.evaluation_dialogue(3, 50, generator)
        scored = batch.targets[row][batch.weights[row] > 0].tolist()
        assert task.codec.decode(scored).split() == " ".join(each.value for each in dialogue.questions).split() or (
            "".join(task.codec.decode(scored).split()) == "".join("".join(q.value.split()) for q in dialogue.questions)
        )


def test_probes_measure_recall_at_each_distance(task: DialogueTask) -> None:
    """One batch for each distance, and one in phrasings that were never trained on."""
    found = task.probes(2, seeded())
    assert list(found) == ["recall at 64", "recall at 256", "recall at 64, reworded"]
    assert found["recall at 256"].tokens.shape[1] > found["recall at 64"].tokens.shape[1] + 150


def test_a_book_is_cut_into_passages_of_whole_sentences() -> None:
    """No word is lost, and no passage ends within a sentence but the last."""
    text = "\n".join(f"This is sentence {number} of the book;\n it is short." for number in range(40))
    passages = split_passages(text)
    assert " ".join(passages) == " ".join(text.split())
    assert all(passage.endswith((".", ";")) and 60 <= len(passage.split()) < 75 for passage in passages[:-1])
