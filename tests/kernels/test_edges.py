"""What stands around a layer's memories, in single calls: the numbers of the formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hope_kernels import edges, native
from torch.nn import functional

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: there are no compiled operators")

# Sums of at most seven roundings of 6e-8 a channel, and a norm of some more.
CLOSE = {"rtol": 2e-6, "atol": 2e-7}


def normal(*shape: int) -> torch.Tensor:
    """Drawn numbers, the same at every call of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def prepared(rows: int, tokens: int, heads: int, size: int, rates: int, window: int) -> dict[str, torch.Tensor]:
    """Arguments of `prepare`."""
    inner, raw = 3 * heads * size, rates * heads
    return {
        "tail": normal(rows, window - 1, inner + raw),
        "qkv": normal(rows, tokens, inner),
        "raw": normal(rows, tokens, raw),
        "conv": normal(inner + raw, window),
        "bias": normal(raw),
    }


@pytest.mark.parametrize(
    ("rows", "tokens", "heads", "size", "rates", "window"),
    [(1, 1, 1, 1, 1, 1), (2, 5, 3, 4, 2, 4), (1, 17, 2, 33, 3, 7), (3, 2, 9, 64, 2, 4), (2, 40, 1, 16, 1, 2)],
)
def test_prepare_convolves_then_normalises(
    rows: int, tokens: int, heads: int, size: int, rates: int, window: int
) -> None:
    """Each channel's window ends with the token itself; queries, keys and values have length 1."""
    given = prepared(rows, tokens, heads, size, rates, window)
    inputs, query, key, value, raw = edges.prepare(**given, num_heads=heads)
    joined = torch.cat([given["tail"], torch.cat([given["qkv"], given["raw"]], -1)], 1)
    assert torch.equal(inputs, joined)
    mixed = functional.conv1d(joined.double().mT, given["conv"].double()[:, None], groups=joined.shape[-1]).mT
    vectors = mixed[..., : 3 * heads * size].view(rows, tokens, 3, heads, size)
    for found, number in ((query, 0), (key, 1), (value, 2)):
        expected = functional.normalize(vectors[:, :, number], dim=-1).transpose(1, 2)
        torch.testing.assert_close(found.double(), expected, **CLOSE)
    expected = (mixed[..., 3 * heads * size :] + given["bias"].double()).view(rows, tokens, rates, heads)
    torch.testing.assert_close(raw.double(), expected.permute(0, 3, 1, 2), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("rows", "heads", "tokens", "size"), [(1, 1, 1, 1), (2, 3, 5, 7), (1, 9, 20, 64), (2, 2, 3, 33)]
)
def test_finish_normalises_weighs_and_gates(rows: int, heads: int, tokens: int, size: int) -> None:
    """Gates from -90 to 90: silu is 0 at one end and the gate itself at the other, without an overflow."""
    found, weight = normal(rows, heads, tokens, size), normal(size)
    gate = torch.linspace(-90, 90, rows * tokens * heads * size).view(rows, tokens, -1)
    out = edges.finish(found, gate, weight, 1e-5)
    normed = functional.rms_norm(found.double(), (size,), weight.double(), 1e-5)
    expected = normed.transpose(1, 2).reshape(rows, tokens, -1) * functional.silu(gate.double())
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=1e-6)


def test_threads_do_not_matter() -> None:
    """Two threads give the same bits."""
    given = prepared(2, 40, 3, 16, 2, 4)
    expected = edges.prepare(**given, num_heads=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = edges.prepare(**given, num_heads=3)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["tail", "qkv", "raw", "conv", "bias"])
def test_what_does_not_fit_is_named(name: str) -> None:
    """Types, and shapes that do not go with the others."""
    given = prepared(2, 5, 3, 4, 2, 4)
    with pytest.raises(ValueError, match=f"{name}: expected float32 on a CPU"):
        edges.prepare(**given | {name: given[name].double()}, num_heads=3)
    if name in ("tail", "raw"):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            edges.prepare(**given | {name: given[name][..., :-1]}, num_heads=3)


def test_channels_that_are_no_heads_are_refused() -> None:
    """Queries, keys and values of five heads cannot be 36 channels."""
    given = prepared(2, 5, 3, 4, 5, 4)
    with pytest.raises(ValueError, match="36 channels cannot be queries, keys and values of 5 heads"):
        edges.prepare(**given, num_heads=5)
