"""The self-modifying Titans layer against its equations token by token, and what guards its memories."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from shutil import which
from typing import Any, Literal

import pytest
import torch
from literal_titans import literal_titans, unpacked
from titans_cases import ADAPTIVE, ADDING, CHUNK_SIZES, EPS, LONGEST, ROWS, SPEC, SUBSETS, WIDTH, drawn, inputs

from hope_server.model.config import TitansSpec
from hope_server.model.titans import LOG_RETENTION, LR, TitansLayer
from hope_server.model.titans_params import TitansParams, random_titans
from hope_server.model.titans_state import TitansState

# Float64 carries 16 digits; the chunk form adds in another order and solves a triangular system of at most 16 tokens.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


FORMS = tuple(
    product(
        ("l2", "dot"),
        ("layer_input", "k_only", "none"),
        ("chunk_start", "current"),
        (True, False),
        (True, False),
    )
)


def layer_of(spec: TitansSpec, chunk_size: int) -> TitansLayer:
    """The layer under test."""
    return TitansLayer(spec, chunk_size, EPS)


def start_of(layer: TitansLayer, params: TitansParams, rows: int = ROWS) -> TitansState:
    """The state of rows that have seen nothing."""
    return layer.empty_state(params.initial, rows)


def assert_same_memories(spec: TitansSpec, state: TitansState, expected: dict[str, list[torch.Tensor]]) -> None:
    """The layer's memories are those of the literal recurrence, by name and layer."""
    found = unpacked(spec, state.memories)
    assert found.keys() == expected.keys()
    for name, memory in found.items():
        for layer, wanted in zip(memory, expected[name], strict=True):
            torch.testing.assert_close(layer, wanted, **EXACT, msg=lambda text, n=name: f"memory {n}: {text}")


def check_against_literal(spec: TitansSpec, chunk_size: int) -> None:
    """Outputs and memories at all awkward lengths."""
    layer, params, x = layer_of(spec, chunk_size), drawn(spec), inputs()
    expected = literal_titans(spec, params, x, chunk_size, EPS)
    for tokens in {1, chunk_size - 1, chunk_size, chunk_size + 1, LONGEST} - {0}:
        out, state = layer.run(params, x[:, :tokens], start_of(layer, params), 0, is_guarded=False)
        torch.testing.assert_close(out, expected.outputs[:, :tokens], **EXACT)
        last_start = tokens - tokens % chunk_size
        assert_same_memories(spec, state, expected.memories[last_start])
        if spec.has_momentum:
            surprises = unpacked(spec, state.surprises)
            for name, parts in expected.surprises[last_start].items():
                for found, wanted in zip(surprises[name], parts, strict=True):
                    torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_every_form_is_the_recurrence_token_by_token(memory: Literal["matrix", "mlp"], chunk_size: int) -> None:
    """Both objectives, all scopes, both reads, with and without retention and momentum: equal at awkward lengths."""
    for number, (objective, scope, reads, has_retention, has_momentum) in enumerate(FORMS):
        # Each form at two of the three chunk sizes. The scope of a matrix is all or none.
        if chunk_size == CHUNK_SIZES[number % 3] or (memory == "matrix" and scope == "k_only"):
            continue
        spec = replace(
            SPEC,
            memory=memory,
            objective=objective,
            dgd_scope=scope,
            reads=reads,
            has_retention=has_retention,
            has_momentum=has_momentum,
            adaptive=ADAPTIVE if has_retention else ADAPTIVE[:-1],
            # A memory of two layers feeds back into its own step size; at a rate of 1 it grows without bound.
            max_lr=1.0 if memory == "matrix" else 0.3,
        )
        check_against_literal(spec, chunk_size)


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_every_choice_of_adaptive_memories_is_the_recurrence(memory: Literal["matrix", "mlp"]) -> None:
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
        check_against_literal(spec, 5)
        check_against_literal(replace(spec, self_targets=not spec.self_targets, objective="dot"), 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_size": 1},
        {"conv_size": 7},
        {"num_heads": 1, "head_dim": 7},
        {"num_heads": 3, "head_dim": 2, "memory": "mlp", "hidden_size": 9},
        {"beside_attention": True},
        {"max_lr": 2.0},
        {"num_sums": 1, "has_momentum": True, "adaptive": ADAPTIVE},
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk_size", [1, 5])
def test_other_sizes_are_the_recurrence(changes: dict[str, Any], chunk_size: int) -> None:
    """Windows of the convolution, heads, sums, hidden units, a branch's gate and the largest step size all count."""
    check_against_literal(replace(SPEC, **changes), chunk_size)


def test_the_guard_changes_nothing_that_does_not_explode() -> None:
    """Where every write is sound, a guarded layer gives what an unguarded one does, bit for bit."""
    for chunk_size in (1, 5, 16):
        layer, x = layer_of(SPEC, chunk_size), inputs()
        params = random_titans(SPEC, WIDTH, torch.Generator().manual_seed(0))
        (out, state), (free, expected) = (
            layer.run(params, x, start_of(layer, params), 0, is_guarded=guarded) for guarded in (True, False)
        )
        assert torch.equal(out, free)
        assert torch.equal(state.memories["weights"], expected.memories["weights"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reads": "current"},
        {"adaptive": ADAPTIVE, "has_momentum": True, "reads": "current"},
        {"adaptive": (), "self_targets": False, "objective": "dot", "is_residual": False, "reads": "current"},
        {"dgd_scope": "none", "has_momentum": True},
        {"memory": "mlp", "max_lr": 0.3},
        {"memory": "mlp", "max_lr": 0.3, "reads": "current", "has_momentum": True, "adaptive": ADAPTIVE},
        {"memory": "mlp", "max_lr": 0.3, "dgd_scope": "k_only", "objective": "dot", "beside_attention": True},
        {"memory": "mlp", "dgd_scope": "none", "adaptive": (), "self_targets": False, "has_momentum": True},
        {"has_retention": False, "adaptive": ("k",), "conv_size": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_gradients_pass_through_every_write(changes: dict[str, Any], chunk_size: int) -> None:
    """Of a loss over three chunks, the gradient in every slow weight is that through the literal recurrence."""
    spec = replace(SPEC, **changes)
    params, x, weights = drawn(spec), inputs(3 * chunk_size + 2), inputs(3 * chunk_size + 2, seed=5)
    x.requires_grad_()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
    given = params.replaced(leaves)
    literal = literal_titans(spec, given, x, chunk_size, EPS, is_differentiable=True)
    layer = layer_of(spec, chunk_size)
    out, _ = layer.run(given, x, start_of(layer, given), 0, is_guarded=False)
    expected = torch.autograd.grad((literal.outputs * weights).sum(), [x, *leaves.values()])
    actual = torch.autograd.grad((out * weights).sum(), [x, *leaves.values()])
    for name, ours, theirs in zip(["x", *leaves], actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
        assert bool(theirs.any()), name


@pytest.mark.parametrize("reads", ["chunk_start", "current"])
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_steps_and_pieces_are_the_whole(
    memory: Literal["matrix", "mlp"], reads: Literal["chunk_start", "current"]
) -> None:
    """Token by token with `step`, or in uneven runs, a layer gives and keeps what it does when it reads at once."""
    spec = replace(SPEC, memory=memory, reads=reads, has_momentum=True, max_lr=0.3)
    layer, params, x = layer_of(spec, 5), drawn(spec), inputs()
    expected, whole = layer.run(params, x, start_of(layer, params), 0)
    state, done, parts = start_of(layer, params), 0, []
    for length in (3, 4, 11, 1, 4):
        out, state = layer.run(params, x[:, done : done + length], state, done % 5)
        parts.append(out)
        done += length
    stepped, found = start_of(layer, params).clone(), []
    for t in range(LONGEST):
        pending, active = torch.full((ROWS,), t % 5), torch.ones(ROWS, dtype=torch.bool)
        found.append(layer.step(params, x[:, t : t + 1], stepped, pending, active))
    for outputs, end in ((parts, state), (found, stepped)):
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, **EXACT)
        wanted = whole.tensors()
        for name, tensor in end.tensors().items():
            used = LONGEST % 5 if name in ("keys", "values", "rates") else None
            ours, theirs = (tensor[:, :, :used], wanted[name][:, :, :used]) if used else (tensor, wanted[name])
            torch.testing.assert_close(ours, theirs, **EXACT, msg=lambda text, n=name: f"{n}: {text}")


def test_run_leaves_the_given_state_as_it_is() -> None:
    """State goes in and comes out: nothing of what was passed in is written."""
    layer, params = layer_of(SPEC, 5), drawn(SPEC)
    _, state = layer.run(params, inputs(7), start_of(layer, params), 0)
    kept = state.clone().tensors()
    layer.run(params, inputs(9), state, 2)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, has_momentum=True, memory="mlp")], ids=["matrix", "mlp"])
def test_a_step_size_is_never_above_the_retention(spec: TitansSpec) -> None:
    """However extreme the input: 0 <= lr <= retention, and retention never falls below exp(-5)."""
    layer, params = layer_of(spec, LONGEST + 1), drawn(spec)
    for strength in (0.0, 1.0, 1e3):
        _, state = layer.run(params, strength * inputs() * 30, start_of(layer, params), 0)
        lr, log_retention = state.rates[:, :, :LONGEST, LR], state.rates[:, :, :LONGEST, LOG_RETENTION]
        assert bool((lr >= 0).all())
        assert bool((lr <= log_retention.exp()).all())
        assert bool((log_retention >= -5).all()) and bool((log_retention <= 0).all())


def test_without_the_decay_along_the_key_the_step_size_is_shared_by_the_chunk() -> None:
    """Stale gradients of a whole chunk add up to no more than one step of the squared error."""
    spec = replace(SPEC, dgd_scope="none")
    layer, params = layer_of(spec, LONGEST + 1), drawn(spec)
    _, state = layer.run(params, inputs() * 1e3, start_of(layer, params), 0)
    assert bool((state.rates[:, :, :LONGEST, LR] * (LONGEST + 1) <= 1).all())


# -- the guard -------------------------------------------------------------------------------------------------------


def adding(chunk_size: int, lr: tuple[float, float, float]) -> tuple[TitansLayer, TitansParams]:
    """A layer that writes at the same step size whatever it reads, one for each head, without momentum's help."""
    params = random_titans(ADDING, WIDTH, torch.Generator().manual_seed(3))
    rates = torch.tensor([*lr, 1e-9, 1e-9, 1e-9], dtype=torch.float64)
    return TitansLayer(ADDING, chunk_size, EPS), replace(
        params, rates=torch.zeros_like(params.rates), rate_bias=torch.logit(rates)
    )


def test_a_write_that_explodes_is_taken_at_half_its_step_size_in_that_head_alone() -> None:
    """Ten equal tokens at step sizes 0.3, 0.99 and 0.2: the second head is written as if its step size were 0.495."""
    layer, params = adding(10, (0.3, 0.99, 0.2))
    _, halved = adding(10, (0.3, 0.495, 0.2))
    x = inputs(1).expand(ROWS, 10, WIDTH)
    _, free = layer.run(params, x, start_of(layer, params), 0, is_guarded=False)
    _, kept = layer.run(params, x, start_of(layer, params), 0)
    _, wanted = layer.run(halved, x, start_of(layer, params), 0, is_guarded=False)
    before, after = free.tensors(), kept.tensors()
    for name in ("memory.weights", "surprise.weights"):
        assert torch.equal(after[name][:, [0, 2]], before[name][:, [0, 2]])
        assert not torch.equal(after[name][:, 1], before[name][:, 1])
        torch.testing.assert_close(after[name], wanted.tensors()[name], rtol=0, atol=1e-12)


def test_a_write_that_explodes_even_so_is_refused_in_that_head_alone() -> None:
    """Sixteen equal tokens at a step size of 0.99 leave that head's memory and momentum as they were, bit for bit."""
    layer, params = adding(16, (0.3, 0.99, 0.2))
    x = inputs(1).expand(ROWS, 16, WIDTH)
    start = start_of(layer, params)
    _, free = layer.run(params, x, start, 0, is_guarded=False)
    _, kept = layer.run(params, x, start, 0)
    assert torch.equal(kept.memories["weights"][:, 1], start.memories["weights"][:, 1])
    assert torch.equal(kept.surprises["weights"][:, 1], start.surprises["weights"][:, 1])
    for head in (0, 2):
        assert torch.equal(kept.memories["weights"][:, head], free.memories["weights"][:, head])
        assert not torch.equal(kept.memories["weights"][:, head], start.memories["weights"][:, head])


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_enters_a_memory(value: float, memory: Literal["matrix", "mlp"]) -> None:
    """One bad token: its row's memories stay as they were at the chunk's start, and reads are sound a chunk later."""
    spec = replace(SPEC, memory=memory, has_momentum=True, max_lr=0.3)
    layer, params, x = layer_of(spec, 5), drawn(spec), inputs()
    x[0, 7, 3] = value
    out, state = layer.run(params, x, start_of(layer, params), 0)
    clean, expected = layer.run(params, inputs(), start_of(layer, params), 0)
    _, before = layer.run(params, x[:, :5], start_of(layer, params), 0)
    _, after = layer.run(params, x[:, 5:10], before, 0)
    for name, tensor in after.tensors().items():
        if name.startswith(("memory", "surprise")):
            assert torch.equal(tensor[0], before.tensors()[name][0])
            assert bool(state.tensors()[name].isfinite().all())
    assert not bool(out[0, 7].isfinite().all())
    # The convolution carries a token three places on, which here ends in the next chunk; that one is refused as well.
    assert bool(out[0, 15:].isfinite().all())
    assert bool(all(tensor.isfinite().all() for tensor in state.tensors().values()))
    assert torch.equal(out[1], clean[1])
    for name, tensor in expected.tensors().items():
        assert torch.equal(tensor[1], state.tensors()[name][1])


def test_decoding_is_guarded_too() -> None:
    """A chunk that completes in `step` is refused like one that completes in `run`, in its own row."""
    layer, params = adding(16, (0.3, 0.99, 0.2))
    x = inputs(1).expand(ROWS, 16, WIDTH).clone()
    x[1] = inputs(16)[1]
    start = start_of(layer, params)
    state = start.clone()
    for t in range(16):
        active = torch.ones(ROWS, dtype=torch.bool)
        layer.step(params, x[:, t : t + 1], state, torch.full((ROWS,), t), active)
    assert torch.equal(state.memories["weights"][0, 1], start.memories["weights"][0, 1])
    assert not torch.equal(state.memories["weights"][1, 1], start.memories["weights"][1, 1])


@pytest.mark.slow  # a minute of compiling
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # what torch.compile warns of is its own
def test_a_compiled_chunk_computes_the_same() -> None:
    """Outputs, memories and gradients of training with fused chunks are those without."""
    spec = replace(SPEC, has_momentum=True, reads="current", adaptive=ADAPTIVE, num_sums=1)
    found = []
    for is_compiled in (False, True):
        layer = TitansLayer(spec, 1, EPS, is_compiled=is_compiled)
        params = drawn(spec)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
        params = params.replaced(leaves)
        out, state = layer.run(params, inputs(4), start_of(layer, params), 0, is_guarded=False)
        out.square().sum().backward()
        gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
        found.append({"out": out, **{name: state.memories[name] for name in state.memories}, **gradients})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, **EXACT, msg=lambda text, n=name: f"{n}: {text}")
