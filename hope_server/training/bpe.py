"""Trains a small byte-level BPE tokenizer with the marks of ChatML, in the form that a converted model folder holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hope_server.errors import SettingsError
from hope_server.model.base_import import TokenizerSource

__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_TEXT",
    "MESSAGE_END",
    "MESSAGE_START",
    "mark_ids",
    "tokenizer_source",
    "train_tokenizer",
]

END_OF_TEXT, MESSAGE_START, MESSAGE_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_MARKS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
_SMALLEST = 256 + len(_MARKS)
_BATCH = 1000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """Return the JSON of a tokenizer trained on `texts`; the same texts give the same tokenizer.

    vocab_size: bytes, marks and merges together; fewer where the texts have no more pairs to merge. Digits are never
    merged, so that a number of n digits always has n tokens.
    Raises SettingsError when the vocabulary has no room for every byte.
    """
    if vocab_size < _SMALLEST:
        raise SettingsError(f"vocab_size {vocab_size} is too small for a byte-level tokenizer; use {_SMALLEST} or more")
    tokenizer = Tokenizer(models.BPE())
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in _MARKS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    remaining = iter(texts)
    batches = iter(lambda: list(itertools.islice(remaining, _BATCH)), [])
    tokenizer.train_from_iterator(batches, trainer)
    text: str = tokenizer.to_str()
    return text


def tokenizer_source(tokenizer_json: str) -> TokenizerSource:
    """Return the tokenizer of `train_tokenizer` with its chat template; a reply ends at the end of a message."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    end_of_text, _, message_end = mark_ids(tokenizer)
    return TokenizerSource(tokenizer_json, CHAT_TEMPLATE, (message_end, end_of_text), None, end_of_text)


def mark_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the tokens of the end of a text, the start of a message and its end; ValueError where one is missing."""
    end_of_text, start, end = (tokenizer.token_to_id(mark) for mark in _MARKS)
    if end_of_text is None or start is None or end is None:
        raise ValueError(f"the tokenizer lacks one of {', '.join(_MARKS)}")
    return end_of_text, start, end
