"""Calls of the fused operators: threads, strides and instruction sets do not matter; what does not fit is refused."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hope_kernels import native, self_modifying
from hope_kernels.dgd_memory import Layout, reference
from torch.nn import functional

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: there are no compiled operators")

MATRIX = Layout(16)
MLP = Layout(16, max_lr=0.3, hidden_size=20, hidden_delta=True)
ROWS, HEADS, CHUNK = 2, 3, 7
# Sums of some tens of roundings of 6e-8.
CLOSE = 2e-6


def draw(layout: Layout, num_chunks: int = 2, chunk_size: int = CHUNK, correlation: float = 0.0) -> dict[str, Any]:
    """Arguments of `advance`: memories of size 1, unit vectors whose keys may be alike, rates about the middle."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    memories = {name: 0.2 * normal(ROWS, HEADS, *shape) for name, shape in layout.shapes().items()}
    surprises = {name: 0.05 * normal(*tensor.shape) for name, tensor in memories.items()} if layout.has_momentum else {}
    tokens = num_chunks * chunk_size
    query, key, value = (normal(ROWS, HEADS, tokens, layout.head_dim) for _ in range(3))
    key = correlation * normal(ROWS, HEADS, 1, layout.head_dim) + (1 - correlation) * key
    vectors = {
        name: functional.normalize(part, dim=-1) for name, part in {"query": query, "key": key, "value": value}.items()
    }
    rates = normal(ROWS, HEADS, tokens, layout.num_rates)
    return {"memories": memories, "surprises": surprises, **vectors, "rates": rates, "chunk_size": chunk_size}


def results(found: tuple[Any, ...]) -> list[torch.Tensor]:
    """All tensors of a call's results."""
    return [part for item in found for part in (item.values() if isinstance(item, dict) else [item])]


def check_against_tokens(layout: Layout, arguments: dict[str, Any]) -> None:
    """Reads, memories and momenta of the first head and the last are those of the float64 recurrence."""
    found, after, momenta = self_modifying.advance(layout, **arguments, is_guarded=False)
    given = {name: arguments[name].double() for name in ("query", "key", "value", "rates")}
    start = arguments["memories"]["weights"].double()
    surprise = arguments["surprises"]["weights"].double() if layout.has_momentum else None
    for row, head in ((0, 0), (ROWS - 1, HEADS - 1)):
        own = [tensor[row, head] for tensor in given.values()]
        momentum = None if surprise is None else surprise[row, head]
        read, state, last = reference.advance_tokens(
            layout, start[row, head], momentum, *own, arguments["chunk_size"], head=head
        )
        pairs = [(found, read), (after["weights"], state)]
        if last is not None:
            pairs.append((momenta["weights"], last))
        for ours, wanted in pairs:
            # What is forgotten entirely ends below the smallest float32.
            assert (ours[row, head] - wanted).norm() < max(CLOSE * wanted.norm(), 1e-30)


@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 2, 15, 16, 17, 63, 64, 65, 130])
def test_chunks_of_any_length_are_their_tokens(chunk_size: int, has_momentum: bool) -> None:
    """Below, at and above the sizes of a triangle's block and of a tile."""
    layout = replace(MATRIX, has_momentum=has_momentum)
    check_against_tokens(layout, draw(layout, 1, chunk_size))


@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lr", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("retention", [-100.0, 0.0, 100.0])
def test_extreme_rates_and_like_keys_are_exact(correlation: float, lr: float, retention: float) -> None:
    """Step sizes 0 and largest, retention 1 and exp(-5), keys unrelated, alike and one and the same."""
    layout = replace(MATRIX, adaptive=("v",))
    arguments = draw(layout, 2, 18, correlation)
    arguments["rates"][..., 0], arguments["rates"][..., 1] = lr, retention
    check_against_tokens(layout, arguments)


def test_a_step_size_of_zero_changes_nothing_bit_for_bit() -> None:
    """With retention 1 such tokens are padding."""
    layout = replace(MATRIX, has_retention=False, adaptive=("k", "v"))
    arguments = draw(layout)
    arguments["rates"][...] = -200.0
    _, after, _ = self_modifying.advance(layout, **arguments)
    assert torch.equal(after["weights"], arguments["memories"]["weights"])


@pytest.mark.parametrize("layout", [MATRIX, MLP, replace(MATRIX, has_momentum=True)], ids=["matrix", "mlp", "momentum"])
def test_threads_and_strides_do_not_matter(layout: Layout) -> None:
    """Two threads, and views into larger tensors, give the same bits."""
    arguments = draw(layout)
    expected = results(self_modifying.advance(layout, **arguments))
    spaced = {
        name: torch.stack([tensor, tensor], -2)[..., 0, :]
        for name, tensor in arguments.items()
        if torch.is_tensor(tensor)
    }
    spaced["rates"] = arguments["rates"].transpose(1, 3).contiguous().transpose(1, 3)
    spaced["memories"] = {name: torch.stack([part, part])[1] for name, part in arguments["memories"].items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = results(self_modifying.advance(layout, **arguments | spaced))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("layout", [MATRIX, MLP], ids=["matrix", "mlp"])
def test_a_row_does_not_notice_the_others(layout: Layout) -> None:
    """One row holds NaN and 1e30; what the other gives is bit for bit what it gives alone."""
    arguments = draw(layout)
    alone = results(self_modifying.advance(layout, **_rows(arguments, slice(1, 2))))
    for tensor in arguments["memories"].values():
        tensor[0] = 1e30
    arguments["key"][0, :, 3] = torch.nan
    together = results(self_modifying.advance(layout, **arguments))
    assert all(torch.equal(ours[1:], theirs) for ours, theirs in zip(together, alone, strict=True))


@pytest.mark.parametrize("layout", [MATRIX, MLP], ids=["matrix", "mlp"])
@pytest.mark.parametrize("name", ["key", "value", "rates"])
def test_what_is_no_number_is_not_written(name: str, layout: Layout) -> None:
    """One bad number, also in a rate: that head's memories keep every bit, all others are written."""
    arguments = draw(layout, 1)
    arguments[name][0, 1, 3, 0] = torch.nan
    _, after, _ = self_modifying.advance(layout, **arguments)
    for key, tensor in after.items():
        before = arguments["memories"][key]
        assert torch.equal(tensor[0, 1], before[0, 1])
        assert not torch.equal(tensor[0, 0], before[0, 0])
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("layout", [MATRIX, MLP], ids=["matrix", "mlp"])
def test_growth_is_measured_from_the_chunk_before(layout: Layout) -> None:
    """A great memory forgets itself in the first chunk; what would make it great again in the second is refused."""
    layout = replace(layout, adaptive=(), self_targets=False)
    arguments = draw(layout)
    for part in arguments["memories"].values():
        part *= 1e6
    arguments["rates"][:, :, :CHUNK, 0], arguments["rates"][:, :, :CHUNK, 1] = -200.0, 1.0
    arguments["value"][:, :, CHUNK:] *= 1e4
    _, whole, _ = self_modifying.advance(layout, **arguments)
    first = {name: part[:, :, :CHUNK] for name, part in arguments.items() if torch.is_tensor(part)}
    _, forgotten, _ = self_modifying.advance(layout, **arguments | first)
    for name, part in whole.items():
        assert torch.equal(part, forgotten[name])
        assert part.norm() < 1e-3 * arguments["memories"][name].norm()


def test_the_arguments_stay_as_they_were() -> None:
    """Memories come out as new tensors."""
    arguments = draw(replace(MATRIX, has_momentum=True))
    before = [tensor.clone() for tensor in results((arguments["memories"], arguments["surprises"], arguments["key"]))]
    self_modifying.advance(replace(MATRIX, has_momentum=True), **arguments)
    after = results((arguments["memories"], arguments["surprises"], arguments["key"]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))


def test_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What vectors of 16, 8 and 4 numbers compute differs by roundings only."""
    layouts = (MATRIX, MLP, replace(MATRIX, has_momentum=True))
    expected = [results(self_modifying.advance(layout, **draw(layout))) for layout in layouts]
    names = list(native.VARIANTS)
    for name in names[names.index(native.variant()) + 1 :]:
        library = ctypes.CDLL(str(native.compile_library(name, tmp_path)))
        monkeypatch.setattr(native, "library", lambda library=library: library)
        for layout, wanted in zip(layouts, expected, strict=True):
            for ours, theirs in zip(results(self_modifying.advance(layout, **draw(layout))), wanted, strict=True):
                assert (ours - theirs).norm() < CLOSE * theirs.norm()


def _rows(arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    def pick(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: pick(part) for name, part in value.items()}
        return value[rows].clone() if torch.is_tensor(value) else value

    return {name: pick(value) for name, value in arguments.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 5}, "key: expected whole chunks of 5 tokens"),
        ({"chunk_size": 0}, "key: expected whole chunks of 0 tokens, 1 or more"),
        ({"key": torch.zeros(ROWS, HEADS, 14, 15)}, r"key: expected \[B, H, T, 16\]"),
        ({"query": torch.zeros(ROWS, HEADS, 13, 16)}, "query: expected"),
        ({"value": torch.zeros(1, HEADS, 14, 16)}, "value: expected"),
        ({"rates": torch.zeros(ROWS, HEADS, 14, 3)}, "rates: expected"),
        ({"key": torch.zeros(ROWS, HEADS, 14, 16, dtype=torch.float64)}, "key: expected float32 on a CPU"),
        (
            {"value": torch.zeros(ROWS, HEADS, 14, 16, device="meta")},
            "value: expected float32 on a CPU, got .* on meta",
        ),
        ({"memories": {"weights": torch.zeros(ROWS, HEADS, 16, 49)}}, "memories: expected"),
        ({"memories": {}}, "memories: expected"),
        ({"surprises": {"weights": torch.zeros(ROWS, HEADS, 16, 50)}}, "surprises: expected .* none without"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    """Lengths, shapes, types and devices: the argument and the rule."""
    with pytest.raises(ValueError, match=message):
        self_modifying.advance(MATRIX, **draw(MATRIX) | changes)


def test_momentum_needs_its_surprises() -> None:
    """A layout with momentum is not written without one."""
    layout = replace(MATRIX, has_momentum=True)
    with pytest.raises(ValueError, match="surprises: expected those of the memories"):
        self_modifying.advance(layout, **draw(layout) | {"surprises": {}})


def test_gradients_float64_and_other_devices_are_not_fused() -> None:
    """There the layer computes its own form."""
    arguments = draw(MATRIX)
    memories, key = arguments["memories"], arguments["key"]
    assert self_modifying.is_fused(memories, key)
    assert not self_modifying.is_fused(memories, key.double())
    assert not self_modifying.is_fused(memories, key.to("meta"))
    assert not self_modifying.is_fused(memories, key.clone().requires_grad_())
    with torch.no_grad():
        assert self_modifying.is_fused(memories, key.clone().requires_grad_())
