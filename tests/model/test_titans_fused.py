"""A Titans layer whose work is done in single calls of compiled operators: the numbers of the literal recurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hope_kernels import native, self_modifying
from literal_titans import literal_titans, unpacked
from titans_cases import ADAPTIVE, ADDING, CHUNK_SIZES, EPS, LONGEST, ROWS, SPEC, SUBSETS, WIDTH, drawn, inputs

from hope_server.model import checkpoint
from hope_server.model.config import TitansSpec
from hope_server.model.hope import HopeModel
from hope_server.model.memories import memory_layout
from hope_server.model.state import empty_state
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams, random_titans
from hope_server.model.titans_state import TitansState

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: there are no compiled operators")

# Sums of some tens of roundings of 6e-8. Memories that make their own keys amplify them from token to token, at chunk
# size 1 a hundred times: the bound is then what the layer's own form in float32 is off by, with room for luck (over 48
# draws the ratio of both errors was 0.4 to 6.2, its geometric mean 1.0).
CLOSE, LUCK = 1e-5, 10
FORMS = tuple(
    product(("l2", "dot"), ("layer_input", "k_only", "none"), ("chunk_start", "current"), (True, False), (True, False))
)


def single(params: TitansParams) -> TitansParams:
    """The slow weights in float32."""
    return params.replaced({name: tensor.float() for name, tensor in params.named().items()})


def double(params: TitansParams) -> TitansParams:
    """The same numbers in float64."""
    return params.replaced({name: tensor.double() for name, tensor in params.named().items()})


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the root of the mean square."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.fixture(autouse=True)
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of compiled operators, so that no test compares the layer's own form with itself."""
    calls: list[str] = []

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            calls.append(call.__name__)
            return call(*args, **options)

        return wrapped

    for call in (self_modifying.advance, self_modifying.address, self_modifying.read, self_modifying.write):
        monkeypatch.setattr(self_modifying, call.__name__, noted(call))
    return calls


def run(
    layer: TitansLayer, params: TitansParams, x: torch.Tensor, *, is_fused: bool = True
) -> tuple[torch.Tensor, TitansState]:
    """Outputs and state of an unguarded layer that begins empty; its own form where fused ones are ruled out."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_fused:
            patch.setattr(self_modifying, "is_fused", lambda *_: False)
        return layer.run(params, x, layer.empty_state(params.initial, ROWS), 0, is_guarded=False)


def check_against_literal(spec: TitansSpec, chunk_size: int, calls: list[str], longest: int = LONGEST) -> None:
    """Outputs, memories and momenta in float32 at all awkward lengths, at most eight chunks of them."""
    longest = min(longest, 8 * chunk_size)
    layer, params, x = TitansLayer(spec, chunk_size, EPS), single(drawn(spec)), inputs(longest).float()
    expected = literal_titans(spec, double(params), x.double(), chunk_size, EPS)
    for tokens in {1, chunk_size - 1, chunk_size, chunk_size + 1, longest} - {0}:
        calls.clear()
        found = parts_of(spec, *run(layer, params, x[:, :tokens]))
        assert calls, "the compiled operators were not called"
        own = parts_of(spec, *run(layer, params, x[:, :tokens], is_fused=False))
        last = tokens - tokens % chunk_size
        wanted = [expected.outputs[:, :tokens], *flat(expected.memories[last])]
        wanted += flat(expected.surprises[last]) if spec.has_momentum else []
        for ours, theirs, truth in zip(found, own, wanted, strict=True):
            assert error(ours, truth) < max(CLOSE, LUCK * error(theirs, truth))


def parts_of(spec: TitansSpec, out: torch.Tensor, state: TitansState) -> list[torch.Tensor]:
    """Everything that is compared: outputs, memories by name and layer, then their momenta."""
    parts = [out, *flat(unpacked(spec, state.memories))]
    return parts + (flat(unpacked(spec, state.surprises)) if spec.has_momentum else [])


def flat(memories: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
    """All tensors in the order of their memories' names."""
    return [part for name in sorted(memories) for part in memories[name]]


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_every_form_is_the_recurrence(
    memory: Literal["matrix", "mlp"], chunk_size: int, fused_calls: list[str]
) -> None:
    """Both objectives, all scopes, both reads, with and without retention and momentum."""
    for objective, scope, reads, has_retention, has_momentum in FORMS:
        spec = replace(
            SPEC,
            memory=memory,
            objective=objective,
            dgd_scope=scope,
            reads=reads,
            has_retention=has_retention,
            has_momentum=has_momentum,
            adaptive=ADAPTIVE if has_retention else ADAPTIVE[:-1],
            max_lr=1.0 if memory == "matrix" else 0.3,
        )
        check_against_literal(spec, chunk_size, fused_calls)


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_every_choice_of_adaptive_memories_is_the_recurrence(
    memory: Literal["matrix", "mlp"], fused_calls: list[str]
) -> None:
    """Any of keys, values, queries and rates may have memories of their own; targets may be self-made or given."""
    for number, adaptive in enumerate(SUBSETS):
        spec = replace(
            SPEC,
            memory=memory,
            adaptive=adaptive,
            self_targets=number % 2 == 0,
            is_residual=number % 3 != 0,
            reads="current" if number % 4 < 2 else "chunk_start",
            max_lr=1.0 if memory == "matrix" else 0.3,
        )
        check_against_literal(spec, 5, fused_calls)
        check_against_literal(replace(spec, self_targets=not spec.self_targets, objective="dot"), 5, fused_calls)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_size": 1},
        {"num_heads": 1, "head_dim": 7},
        {"num_heads": 3, "head_dim": 16, "memory": "mlp", "hidden_size": 33, "max_lr": 0.3},
        {"num_heads": 1, "head_dim": 32, "memory": "mlp", "hidden_size": 16, "has_momentum": True, "max_lr": 0.3},
        {"num_heads": 2, "head_dim": 64},
        {"num_heads": 2, "head_dim": 64, "reads": "current"},
        {"num_heads": 1, "head_dim": 7, "reads": "current", "has_momentum": True},
        {"num_heads": 1, "head_dim": 20, "reads": "current", "memory": "mlp", "hidden_size": 33, "max_lr": 0.3},
        {"num_heads": 1, "head_dim": 48, "has_momentum": True},
        {"num_sums": 1, "has_momentum": True, "adaptive": ADAPTIVE},
        {"num_sums": 1, "has_momentum": True, "adaptive": ADAPTIVE, "memory": "mlp", "max_lr": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk_size", [1, 5])
def test_other_sizes_are_the_recurrence(changes: dict[str, Any], chunk_size: int, fused_calls: list[str]) -> None:
    """Heads, sums and hidden units that are, and are not, whole vectors of the processor."""
    check_against_literal(replace(SPEC, **changes), chunk_size, fused_calls)


@pytest.mark.parametrize("reads", ["chunk_start", "current"])
@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_a_chunk_of_several_tiles_is_the_recurrence(
    memory: Literal["matrix", "mlp"],
    has_momentum: bool,
    reads: Literal["chunk_start", "current"],
    fused_calls: list[str],
) -> None:
    """Residuals are those of the chunk's start in every tile, predictions those of the memory that moved."""
    spec = replace(SPEC, num_heads=1, memory=memory, has_momentum=has_momentum, reads=reads, max_lr=0.3)
    check_against_literal(spec, 70, fused_calls, longest=71)


@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_pieces_and_steps_are_the_whole_bit_for_bit(memory: Literal["matrix", "mlp"], has_momentum: bool) -> None:
    """However its tokens arrive, a head's memories come out the same; projections may round apart."""
    spec = replace(SPEC, memory=memory, has_momentum=has_momentum, max_lr=0.3, head_dim=16, hidden_size=20)
    params = single(drawn(spec))
    memories = {name: tensor.expand(ROWS, *tensor.shape) for name, tensor in params.initial.items()}
    surprises = {name: torch.zeros_like(tensor) for name, tensor in memories.items()} if has_momentum else {}
    generator = torch.Generator().manual_seed(7)
    vectors = [torch.randn(ROWS, 2, 20, 16, generator=generator) for _ in range(3)]
    query, key, value = (torch.nn.functional.normalize(vector, dim=-1) for vector in vectors)
    rates = torch.randn(ROWS, 2, 20, 2 + has_momentum, generator=generator)
    layout = memory_layout(spec, 5)
    found, whole, momenta = self_modifying.advance(layout, memories, surprises, query, key, value, rates, 5)
    pieces, kept, kept_momenta = [], memories, surprises
    for start in range(0, 20, 5):
        held = []
        for first, last in ((0, 1), (1, 4), (4, 5)):
            span = slice(start + first, start + last)
            parts = (part[:, :, span] for part in (query, key, value, rates))
            piece, *fresh = self_modifying.address(layout, kept, *parts)
            pieces.append(piece)
            held.append(fresh)
        joined = [torch.cat(parts, dim=2) for parts in zip(*held, strict=True)]
        kept, kept_momenta = self_modifying.write(layout, kept, kept_momenta, *joined)
    assert torch.equal(torch.cat(pieces, dim=2), found)
    for ours, theirs in ((kept, whole), (kept_momenta, momenta)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("reads", ["chunk_start", "current"])
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_decoding_is_reading(memory: Literal["matrix", "mlp"], reads: Literal["chunk_start", "current"]) -> None:
    """Rows at different places of their chunks, decoded together, find what each finds when it reads alone.

    Projections of one token round apart from those of many, and memories amplify that.
    """
    spec = replace(SPEC, memory=memory, has_momentum=True, reads=reads, max_lr=0.3)
    layer, params, x = TitansLayer(spec, 5, EPS), single(drawn(spec)), inputs().float()
    expected, whole = layer.run(params, x, layer.empty_state(params.initial, ROWS), 0)
    state = layer.empty_state(params.initial, ROWS).clone()
    places, outputs = torch.tensor([0, 0]), [[], []]
    for turn in range(LONGEST + 4):
        active = torch.tensor([turn < LONGEST, turn >= 4])
        taken = torch.stack([x[row, min(int(place), LONGEST - 1)] for row, place in enumerate(places)])
        out = layer.step(params, taken[:, None], state, places % 5, active)
        for row in range(ROWS):
            if active[row]:
                outputs[row].append(out[row])
        places = places + active
    for row in range(ROWS):
        assert error(torch.cat(outputs[row]), expected[row].double()) < 10 * CLOSE
    for name, tensor in state.memories.items():
        assert error(tensor, whole.memories[name].double()) < 10 * CLOSE


@pytest.mark.parametrize("name", ["rates", "conv", "out_norm", "initial.weights"])
def test_a_gradient_of_anything_is_never_lost(name: str, fused_calls: list[str]) -> None:
    """Where one slow weight alone is trained, the layer computes what autograd can follow."""
    layer, params, x = TitansLayer(SPEC, 5, EPS), single(drawn(SPEC)), inputs().float()
    named = params.named()
    chosen = next(key for key in named if key.endswith(name))
    trained = params.replaced(
        {key: tensor.requires_grad_() if key == chosen else tensor for key, tensor in named.items()}
    )
    out, _ = run(layer, trained, x)
    (gradient,) = torch.autograd.grad(out.square().sum(), [trained.named()[chosen]])
    assert bool(gradient.any()) and not fused_calls


def guarded(spec: TitansSpec, params: TitansParams, x: torch.Tensor, chunk_size: int) -> TitansState:
    """The state after x, with the guard."""
    layer = TitansLayer(spec, chunk_size, EPS)
    return layer.run(params, x, layer.empty_state(params.initial, x.shape[0]), 0)[1]


@pytest.mark.parametrize("chunk_size", [10, 16])
def test_the_guard_acts_as_the_layers_own(chunk_size: int) -> None:
    """The head that explodes is written at half its step size, or refused, as in float64; others are written."""
    params = random_titans(ADDING, WIDTH, torch.Generator().manual_seed(3))
    rates = torch.logit(torch.tensor([0.3, 0.99, 0.2, 1e-9, 1e-9, 1e-9], dtype=torch.float64))
    params = replace(params, rates=torch.zeros_like(params.rates), rate_bias=rates)
    x = inputs(1).expand(ROWS, chunk_size, WIDTH)
    expected = guarded(ADDING, params, x, chunk_size).memories["weights"]
    found = guarded(ADDING, single(params), x.float(), chunk_size).memories["weights"]
    assert error(found, expected) < CLOSE
    unwritten = single(params).initial["weights"][1]
    assert torch.equal(found[0, 1], unwritten) == (chunk_size == 16)


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_enters_a_memory(value: float, memory: Literal["matrix", "mlp"]) -> None:
    """One bad token: its row's memories stay as they were at the chunk's start; the other row does not notice."""
    spec = replace(SPEC, memory=memory, has_momentum=True, max_lr=0.3)
    layer, params, x = TitansLayer(spec, 5, EPS), single(drawn(spec)), inputs(10).float()
    _, before = layer.run(params, x[:, :5], layer.empty_state(params.initial, ROWS), 0)
    bad = x.clone()
    bad[0, 7, 3] = value
    (_, found), (_, clean) = (layer.run(params, given[:, 5:], before, 0) for given in (bad, x))
    for name, tensor in found.memories.items():
        assert torch.equal(tensor[0], before.memories[name][0])
        assert torch.equal(tensor[1], clean.memories[name][1])


def test_the_model_in_the_package_is_computed_by_single_calls(tmp_path: Path, fused_calls: list[str]) -> None:
    """hope-nano, whose memories are read after each token's write, reads and decodes with the compiled operators."""
    folder = checkpoint.resolve_model("hope-nano", tmp_path)
    params = checkpoint.load_params(folder, torch.float32)
    config = checkpoint.load_hope(folder)
    assert config is not None and config.titans is not None
    model = HopeModel(config, params=params)
    state = empty_state(model.memory, 1, torch.float32)
    model.prefill(params, state, torch.arange(2 * config.chunk_size + 1)[None])
    model.decode(params, state, torch.tensor([7]), torch.tensor([True]))
    layers = len(config.titans.blocks)
    assert fused_calls.count("advance") == layers
    assert fused_calls.count("address") == 2 * layers
    assert fused_calls.count("read") == 2 * layers
