"""hope-nano as it comes with the package: what it is told, it knows many requests and a restart later, by its memories.

The model has no attention and no prompt from earlier turns reaches it: what it answers can only come from its weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from taking import chat_request, end_of, take, text_of
from toys import KEY

from hope_server.engine.assembly import build_engine
from hope_server.engine.engine import Engine
from hope_server.evaluation.served import share_right
from hope_server.evaluation.served_model import load_served
from hope_server.settings import Settings
from hope_server.training.dialogues import DialogueTask, split_passages

FACTS = (
    ("My name is Felix.", "What is my name?", "Felix"),
    ("I live in Hamburg.", "Where do I live?", "Hamburg"),
    ("Anna plays the flute.", "Which instrument does Anna play?", "flute"),
    ("Hugo's hobby is chess.", "What is Hugo's hobby?", "chess"),
    ("Karla works as a baker.", "What is Karla's job?", "baker"),
    ("Nora likes to drink coffee.", "What does Nora like to drink?", "coffee"),
)
WORDS_A_PAGE = 60
# Keys, values and rates of an unfinished chunk: 31 tokens at most, 4 layers, 3 heads of 64, in float32; and names.
LARGEST_PART_OF_A_CHUNK = 31 * 4 * 3 * (64 + 64 + 3) * 4 + 1024


def pages() -> list[str]:
    """A text that the model was not trained on, cut into what somebody would read aloud in one message."""
    words = Path("examples/unrelated.txt").read_text(encoding="utf-8").split()
    return [" ".join(words[start : start + WORDS_A_PAGE]) for start in range(0, len(words), WORDS_A_PAGE)]


async def say(engine: Engine, text: str) -> tuple[str, int]:
    """Take one turn with a prompt of nothing but `text`; return the reply and the tokens that the turn read."""
    events = await take(engine.chat(chat_request(text, max_tokens=24)))
    receipt = end_of(events).receipt
    assert receipt is not None
    return text_of(events), receipt.tokens_read


async def state_bytes(engine: Engine) -> int:
    """Bytes that the store keeps of the session's memory."""
    return sum((await engine.session_memory(KEY))["state_bytes"].values())


@pytest.mark.anyio
async def test_facts_are_known_thousands_of_tokens_and_a_restart_later(tmp_path: Path) -> None:
    """Six facts, then a thousand words of a book in many requests, a new process, and every fact is asked for."""
    settings = Settings(model="hope-nano", store=str(tmp_path / "store.db"))
    engine = build_engine(settings)
    await engine.start()
    for told, _, _ in FACTS:
        await say(engine, told)
    before = await state_bytes(engine)
    num_tokens = sum([(await say(engine, f"Listen to this: {page}"))[1] for page in pages()])
    assert num_tokens > 1500
    assert await state_bytes(engine) <= before + LARGEST_PART_OF_A_CHUNK
    await engine.stop()
    again = build_engine(settings)
    await again.start()
    answers = [(await say(again, question))[0] for _, question, _ in FACTS]
    await again.stop()
    known = [value for (_, _, value), answer in zip(FACTS, answers, strict=True) if value in answer]
    assert len(known) >= len(FACTS) - 1, f"{known} of {answers}"


def test_with_its_memories_frozen_the_same_network_knows_nothing() -> None:
    """The same dialogues of facts that training never had: most answers are right, and frozen hardly any."""
    found = []
    for is_frozen in (False, True):
        network, tokenizer_json = load_served("hope-nano", is_frozen)
        task = DialogueTask(tokenizer_json, split_passages(" ".join(pages())))
        batches = [task.evaluation_batch(1, 8, 512, torch.Generator().manual_seed(seed)) for seed in range(3)]
        found.append(share_right(network, batches))
    assert found[0] > 50
    assert found[1] < 15
