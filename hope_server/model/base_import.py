"""What an importer hands over, whatever it read: a Llama-family network under canonical names with its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from hope_server.errors import CheckpointError
from hope_server.model.config import ModelConfig

# Called with a stage and the fraction of that stage that is done, 0 to 1.
Progress = Callable[[str, float], None]

_MAX_LAYERS, _MAX_SIZE = 1_000, 2**24
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A tokenizer in the `tokenizers` JSON format and what belongs to it.

    chat_template: Jinja text; None where the model has none.
    eos_token_ids: tokens that end a reply.
    bos_token_id, pad_token_id: None where the model has none.
    """

    tokenizer_json: str
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base network as read from its source. `tensors` has exactly the names and shapes of `expected_shapes`."""

    config: ModelConfig
    tokenizer: TokenizerSource
    tensors: dict[str, Tensor]


class Facts:
    """Typed look-ups in a checkpoint's metadata; a missing or mistyped entry is a CheckpointError that names it."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the integer under `key`; a JSON null counts as absent."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return the number under `key`."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        return float(value)

    def strings(self, key: str) -> list[str]:
        """Return the list of strings under `key`."""
        value = self._values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings", value)
        return value

    def optional_token(self, key: str) -> int | None:
        """Return the token id under `key`, or None where there is none."""
        return None if self._values.get(key) is None else self.integer(key)

    def _wrong(self, key: str, kind: str, value: object) -> CheckpointError:
        found = "is missing" if value is None else f"should be {kind}, not {str(value)[:40]!r}"
        return CheckpointError(f"{self._where}: {key} {found}; the file is damaged or not a Llama-family model")


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return canonical weight names and their shapes: projections are (out features, in features), norms (D,)."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "q": (queries, width),
        "k": (keys, width),
        "v": (keys, width),
        "o": (width, queries),
        "mlp_norm": (width,),
        "gate": (inner, width),
        "up": (inner, width),
        "down": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, width), "norm.weight": (width,)}
    if not config.tie_embeddings:
        shapes["head.weight"] = (config.vocab_size, width)
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def check_config(config: ModelConfig, where: str) -> None:
    """Raise CheckpointError unless the numbers describe a network that can be built."""
    sizes = {
        "vocabulary": config.vocab_size,
        "width": config.hidden_size,
        "MLP width": config.intermediate_size,
        "number of layers": config.num_layers,
        "number of heads": config.num_heads,
        "number of key/value heads": config.num_kv_heads,
        "head size": config.head_dim,
        "context length": config.max_position,
    }
    for name, value in sizes.items():
        # A damaged count must not become a loop without end.
        if not 1 <= value <= (_MAX_LAYERS if name == "number of layers" else _MAX_SIZE):
            raise CheckpointError(f"{where}: the {name} is {value}; the file is damaged")
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise CheckpointError(
            f"{where}: {config.num_heads} heads of size {config.head_dim} cannot share {config.num_kv_heads} "
            "key/value heads with rotary positions; the file is damaged"
        )
    if not (0.0 < config.rms_norm_eps < 1.0 and 1.0 < config.rope_theta < math.inf):
        raise CheckpointError(
            f"{where}: norm epsilon {config.rms_norm_eps:g} or rotary base {config.rope_theta:g} is out of range"
        )


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError unless `tensors` are exactly those of `expected_shapes`, in a dtype that can be served."""
    expected = expected_shapes(config)
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} weights are missing, {missing[0]} first; download the whole checkpoint again"
        )
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(found.shape)}, the configuration asks for {shape}; "
                "configuration and weights belong to different models"
            )
        if found.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"{where}: {name} is stored as {found.dtype}; use a float32, bfloat16 or float16 checkpoint"
            )


def parse_tokenizer(text: str, vocab_size: int, where: str) -> FastTokenizer:
    """Return the tokenizer written in `text` (the JSON format of `tokenizers`).

    vocab_size: rows of the embedding; every token id must be below it.
    Raises CheckpointError when the text is no tokenizer or does not belong to the network.
    """
    try:
        tokenizer = FastTokenizer.from_str(text)
    except Exception as exc:
        # The library reports every fault of the text as a bare Exception; anything narrower is not about the text.
        if type(exc) is not Exception:
            raise
        raise CheckpointError(f"{where}: tokenizer.json cannot be read ({exc}); copy the file again") from exc
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= highest < vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has ids up to {highest}, the network {vocab_size} rows; "
            "use the tokenizer.json that belongs to these weights"
        )
    return tokenizer


def check_import(model: BaseModel, where: str) -> None:
    """Raise CheckpointError unless special ids lie in the vocabulary and every weight is a finite number."""
    tokenizer, limit = model.tokenizer, model.config.vocab_size
    ids = [*tokenizer.eos_token_ids, tokenizer.bos_token_id or 0, tokenizer.pad_token_id or 0]
    if min(ids) < 0 or max(ids) >= limit:
        raise CheckpointError(f"{where}: special token ids {ids} exceed the vocabulary of {limit}; copy it again")
    for name, tensor in model.tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{where}: {name} holds NaN or infinity; download or copy the checkpoint again")
