"""The slow weights of a network, fused for fewer, larger matrix products. Never written while serving.

Shapes: V vocabulary, D model width, F MLP width, Q = heads x head size, U = key-value heads x head size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch

from hope_server.model.config import HopeConfig, ModelConfig
from hope_server.model.levels import make_layout
from hope_server.model.titans_params import TitansParams, random_titans


@dataclass(frozen=True, slots=True)
class BlockParams:
    """One block: a token mixer (attention, Titans, or both), then an MLP.

    attn_norm, mlp_norm [D]; gate_up [2F, D], down [D, F]; attention: qkv [Q+2U, D] and out [D, Q], None without it;
    titans: None without it.
    """

    attn_norm: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    qkv: torch.Tensor | None = None
    out: torch.Tensor | None = None
    titans: TitansParams | None = None


@dataclass(frozen=True, slots=True)
class Params:
    """All slow weights: embed [V, D], head [V, D] (the same tensor when tied), norm [D], blocks.

    levels: learned initial weights of memory levels, [P] by level name; empty where they are drawn.
    """

    embed: torch.Tensor
    head: torch.Tensor
    norm: torch.Tensor
    blocks: tuple[BlockParams, ...]
    levels: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self.embed.dtype

    def rounded(self, dtype: torch.dtype, *, with_head: bool = True) -> Params:
        """The same network with the matrices of its attention, MLPs and head in `dtype`; itself where they are."""
        if dtype == self.dtype:
            return self
        head = self.head.to(dtype) if with_head else self.head

        def cast(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        blocks = (
            replace(
                block,
                gate_up=block.gate_up.to(dtype),
                down=block.down.to(dtype),
                qkv=cast(block.qkv),
                out=cast(block.out),
            )
            for block in self.blocks
        )
        return replace(self, blocks=tuple(blocks), head=head)

    def digest(self) -> str:
        """SHA-256 of every weight, to show that serving does not write them."""
        total = hashlib.sha256()
        for tensor in self.tensors():
            total.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def tensors(self) -> list[torch.Tensor]:
        """Every weight once, in a fixed order."""
        return list(self.named().values())

    def named(self) -> dict[str, torch.Tensor]:
        """Every weight once, by a stable dotted name, in a fixed order."""
        out = {"embed": self.embed, "norm": self.norm}
        if self.head is not self.embed:
            out["head"] = self.head
        for index, block in enumerate(self.blocks):
            own = {name: getattr(block, name) for name in _BLOCK_TENSORS}
            out |= {f"blocks.{index}.{name}": tensor for name, tensor in own.items() if tensor is not None}
            if block.titans is not None:
                out |= {f"blocks.{index}.titans.{name}": tensor for name, tensor in block.titans.named().items()}
        return out | {f"levels.{name}": tensor for name, tensor in self.levels.items()}

    def replaced(self, tensors: dict[str, torch.Tensor]) -> Params:
        """The same network around other tensors, named as `named` names them; raises KeyError where one lacks."""
        blocks = []
        for index, block in enumerate(self.blocks):
            prefix = f"blocks.{index}."
            own = {name: tensors[prefix + name] for name in _BLOCK_TENSORS if getattr(block, name) is not None}
            titans = block.titans
            if titans is not None:
                titans = titans.replaced({name: tensors[f"{prefix}titans.{name}"] for name in titans.named()})
            blocks.append(replace(block, **own, titans=titans))
        embed = tensors["embed"]
        head = embed if self.head is self.embed else tensors["head"]
        levels = {name: tensors[f"levels.{name}"] for name in self.levels}
        return Params(embed, head, tensors["norm"], tuple(blocks), levels)


_BLOCK_TENSORS = ("attn_norm", "qkv", "out", "mlp_norm", "gate_up", "down")


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


def random_params(config: HopeConfig, seed: int, dtype: torch.dtype = torch.float32) -> Params:
    """Draw the slow weights of any family, ready to be trained: residual branches start small.

    The initial weights of online levels are among them.
    """
    model, titans = config.model, config.titans
    generator = torch.Generator().manual_seed(seed)
    width, inner = model.hidden_size, model.intermediate_size
    queries, shared = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    depth = 0.3 * (2 * model.num_layers) ** -0.5

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        scaled: torch.Tensor = drawn * (scale * columns**-0.5)
        return scaled.to(dtype)

    blocks = []
    for index in range(model.num_layers):
        attends = index in config.attention_blocks
        layer = None
        if titans is not None and index in titans.blocks:
            drawn = random_titans(titans, width, generator)
            layer = drawn.replaced({name: tensor.to(dtype) for name, tensor in drawn.named().items()})
        blocks.append(
            BlockParams(
                attn_norm=torch.ones(width, dtype=dtype),
                mlp_norm=torch.ones(width, dtype=dtype),
                gate_up=matrix(2 * inner, width),
                down=matrix(width, inner, depth),
                qkv=matrix(queries + 2 * shared, width) if attends else None,
                out=matrix(width, queries, depth) if attends else None,
                titans=layer,
            )
        )
    embed = matrix(model.vocab_size, width)
    head = embed if model.tie_embeddings else matrix(model.vocab_size, width)
    online = [spec for spec in config.levels if spec.schedule == "online"]
    levels = {spec.name: make_layout(spec, model).initial(dtype) for spec in online}
    return Params(embed, head, torch.ones(width, dtype=dtype), tuple(blocks), levels)
