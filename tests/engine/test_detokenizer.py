"""Streaming text: whole characters only, together the text of all ids, and cut exactly before a stop string."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.tokenizer import Tokenizer
from hope_server.model.base_import import TokenizerSource

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd▁"), max_size=30)
EMOJI = "naïve 👩‍👩‍👧 日本 🇫🇷!"


def make_byte_level() -> Tokenizer:
    tokens = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "ðŁ", "ĺĢ", "ĢĢ"]
    merges = [("h", "e"), ("l", "l"), ("ð", "Ł"), ("ĺ", "Ģ")]
    bpe = FastTokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<|end|>", special=True)])
    return Tokenizer(TokenizerSource(bpe.to_str(), None, (0,), None, None), len(tokens))


def make_byte_fallback() -> Tokenizer:
    """In the manner of Llama 2: words joined by a visible space, unknown characters as bytes, a leading space cut."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehlo", "he", "▁he"]
    merges = [("h", "e"), ("▁", "he")]
    bpe = FastTokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return Tokenizer(TokenizerSource(bpe.to_str(), None, (2,), 1, None), len(tokens))


BYTE_LEVEL, BYTE_FALLBACK = make_byte_level(), make_byte_fallback()
BYTE_IDS = {BYTE_LEVEL.token_bytes(token): token for token in range(BYTE_LEVEL.vocab_size)}


def stream(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    detokenizer = StreamingDetokenizer(tokenizer, stop)
    pieces = [detokenizer.push(token) for token in ids]
    return [*pieces, detokenizer.flush()], detokenizer.stopped


def tokenise(parts: list[tuple[str, bool]]) -> list[int]:
    """Ids of the parts, each either as the tokenizer would have it or byte by byte."""
    ids: list[int] = []
    for text, is_bytes in parts:
        ids += [BYTE_IDS[bytes([byte])] for byte in text.encode()] if is_bytes else BYTE_LEVEL.encode(text)
    return ids


@given(st.lists(st.tuples(TEXTS, st.booleans()), max_size=5))
def test_pieces_are_the_text(parts):
    """However a text is cut into tokens, the pieces join to it and none has a broken character."""
    pieces, stopped = stream(BYTE_LEVEL, tokenise(parts))
    assert "".join(pieces) == "".join(text for text, _ in parts)
    assert not any("\ufffd" in piece for piece in pieces)
    assert not stopped


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=40))
def test_any_ids_give_their_decoding(ids):
    """Even for ids that are no text the pieces join to the decoding of all ids, less an unfinished character."""
    text = "".join(stream(BYTE_LEVEL, ids)[0])
    assert BYTE_LEVEL.decode(ids) in (text, text + "\ufffd")


@given(TEXTS)
def test_other_tokenizers_stream_too(text):
    """With byte fallback and joined words the pieces join to the text, without broken characters."""
    ids = BYTE_FALLBACK.encode(text)
    pieces, _ = stream(BYTE_FALLBACK, ids)
    assert "".join(pieces) == BYTE_FALLBACK.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK])
def test_characters_come_as_soon_as_they_are_whole(tokenizer):
    """Text is not held longer than its last byte: after every id, all whole characters so far are out."""
    detokenizer = StreamingDetokenizer(tokenizer)
    ids, seen = tokenizer.encode(EMOJI), ""
    for index, token in enumerate(ids):
        seen += detokenizer.push(token)
        so_far = tokenizer.decode(ids[: index + 1])
        assert "\ufffd" in so_far or seen == so_far
    assert seen == EMOJI


def reference_cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Character by character: the first stop string to be complete cuts the text, the longest if several are."""
    for end in range(1, len(text) + 1):
        for each in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(each):
                return text[: end - len(each)], True
    return text, False


@given(
    st.text("abhel👩", max_size=40),
    st.lists(st.text("abhel👩", min_size=1, max_size=4), max_size=3, unique=True),
    st.booleans(),
)
def test_stop_strings_cut_exactly(text, stop, is_bytes):
    """A stop string cuts the text before itself, wherever token borders fall, and nothing of it is ever given out."""
    pieces, stopped = stream(BYTE_LEVEL, tokenise([(text, is_bytes)]), tuple(stop))
    expected, is_cut = reference_cut(text, tuple(stop))
    assert ("".join(pieces), stopped) == (expected, is_cut)
    assert not any(each in expected for each in stop)


def test_possible_stops_are_held_back():
    """Text that may become a stop string waits, comes out when it does not, and at the end of the reply."""
    detokenizer = StreamingDetokenizer(BYTE_LEVEL, ("lo!", "END"))
    assert [detokenizer.push(token) for token in BYTE_LEVEL.encode("helo")] == ["he", "", ""]
    assert [detokenizer.push(token) for token in BYTE_LEVEL.encode(" E")] == ["lo ", ""]
    assert (detokenizer.flush(), detokenizer.stopped) == ("E", False)


def test_nothing_follows_a_stop():
    """Once stopped, further ids and the end of the reply give no text."""
    detokenizer = StreamingDetokenizer(BYTE_LEVEL, ("", "ll"))
    assert "".join(detokenizer.push(token) for token in BYTE_LEVEL.encode("hello hello")) == "he"
    assert (detokenizer.stopped, detokenizer.flush()) == (True, "")


def test_unfinished_character_is_dropped():
    """A reply that ends inside a character ends before it."""
    for tokenizer in (BYTE_LEVEL, BYTE_FALLBACK):
        assert "".join(stream(tokenizer, tokenizer.encode("a👩")[:-1])[0]) == "a"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK])
def test_cost_per_token_does_not_grow(tokenizer):
    """Ten times the tokens take about ten times as long, also when they never become a character."""
    broken = tokenizer.encode("👩")[1:2] * 2000
    for ids in (tokenizer.encode("he bad ") * 300, broken):
        seconds = []
        for repeats in (1, 10):
            start = time.perf_counter()
            stream(tokenizer, ids * repeats, ("<never>",))
            seconds.append(time.perf_counter() - start)
        # Quadratic cost would be a factor of 100; noise of a busy machine stays far below 40.
        assert seconds[1] < 40 * seconds[0] + 0.05
