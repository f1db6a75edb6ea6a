"""The slow weights of the base network, fused for fewer, larger matrix products. Never written while serving.

Shapes: V vocabulary, D model width, F MLP width, Q = heads x head size, U = key-value heads x head size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from hope_server.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class BlockParams:
    """One Transformer block: qkv [Q+2U, D], out [D, Q], gate_up [2F, D], down [D, F], two norms [D]."""

    attn_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class Params:
    """All slow weights: embed [V, D], head [V, D] (the same tensor when tied), norm [D], blocks."""

    embed: torch.Tensor
    head: torch.Tensor
    norm: torch.Tensor
    blocks: tuple[BlockParams, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self.embed.dtype

    def digest(self) -> str:
        """SHA-256 of every weight, to show that serving does not write them."""
        total = hashlib.sha256()
        for tensor in self.tensors():
            total.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def tensors(self) -> list[torch.Tensor]:
        """Every weight once, in a fixed order."""
        out = [self.embed, self.norm] if self.head is self.embed else [self.embed, self.head, self.norm]
        for block in self.blocks:
            out += [block.attn_norm, block.qkv, block.out, block.mlp_norm, block.gate_up, block.down]
        return out


def fuse_params(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Params:
    """Build Params out of the canonical names of `checkpoint.load_weights`; empties `weights` as it goes.

    Everything is copied, so that the mapped file, whose pages would stay resident beside the fused copies, can go.
    """
    blocks = []
    embed = weights.pop("embed.weight").clone()
    head = embed if config.tie_embeddings else weights.pop("head.weight").clone()
    norm = weights.pop("norm.weight").clone()
    for i in range(config.num_layers):
        parts = {
            key: weights.pop(f"layers.{i}.{key}.weight")
            for key in ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down")
        }
        blocks.append(
            BlockParams(
                attn_norm=parts["attn_norm"].clone(),
                qkv=torch.cat([parts["q"], parts["k"], parts["v"]]),
                out=parts["o"].clone(),
                mlp_norm=parts["mlp_norm"].clone(),
                gate_up=torch.cat([parts["gate"], parts["up"]]),
                down=parts["down"].clone(),
            )
        )
    return Params(embed=embed, head=head, norm=norm, blocks=tuple(blocks))


def random_weights(config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights under the canonical names, for toy models in tests and load tests."""
    generator = torch.Generator().manual_seed(seed)
    queries, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width, inner = config.hidden_size, config.intermediate_size
    shapes = {"q": (queries, width), "k": (shared, width), "v": (shared, width), "o": (width, queries)}
    shapes |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    names = {"embed.weight": (config.vocab_size, width)}
    if not config.tie_embeddings:
        names["head.weight"] = (config.vocab_size, width)
    names |= {f"layers.{i}.{key}.weight": shape for i in range(config.num_layers) for key, shape in shapes.items()}
    out = {
        name: (torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5).to(dtype)
        for name, shape in names.items()
    }
    norms = ["norm.weight"] + [
        f"layers.{i}.{key}.weight" for i in range(config.num_layers) for key in ("attn_norm", "mlp_norm")
    ]
    return out | {name: torch.ones(width, dtype=dtype) for name in norms}
