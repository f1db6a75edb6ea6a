"""The chunk form of `dgd_memory` equals the token-by-token reference: states, momenta and reads after every token."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory import reference, write_chunk
from memory_cases import EXACT, MOMENTA, Case, draw, draw_case

# One token, two, and both sides of the two chunk sizes that are served.
NUM_TOKENS = [1, 2, 15, 16, 17, 63, 64, 65]
# Key size, value size, leading dimensions: ones, primes, no powers of two, no leading dimension at all.
SIZES = [
    (1, 1, ()),
    (1, 3, (2,)),
    (5, 1, (1,)),
    (3, 7, ()),
    (33, 20, (2, 1, 3)),
    (13, 194, (4,)),
]


def assert_same_as_tokens(case: Case, delta: float, starts: tuple[int, ...] = (0,)) -> None:
    """Compare what a chunk leaves, and what is read from it after every token, with the reference."""
    states, surprises = reference.write_tokens(
        case.weights, case.keys, case.residuals, case.gates, delta, case.surprise
    )
    written = write_chunk(case.weights, case.keys, case.residuals, case.gates, delta, case.surprise)
    final, final_surprise = written.final()
    torch.testing.assert_close(final, states[-1], **EXACT)
    if case.surprise is None:
        assert final_surprise is None
    else:
        torch.testing.assert_close(final_surprise, surprises[-1], **EXACT)
    for start in starts:
        queries = draw(*case.keys[..., start:, :].shape)
        expected = torch.stack([queries[..., i, :][..., None, :] @ s for i, s in enumerate(states[start + 1 :])], -3)
        torch.testing.assert_close(written.read(queries, start), expected[..., 0, :], **EXACT)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_chunk_equals_its_tokens(num_tokens: int, delta: float, momentum: str) -> None:
    """Final state, final momentum and the read after every token are those of the recurrence."""
    starts = (0, num_tokens // 2, num_tokens - 1)
    assert_same_as_tokens(draw_case(num_tokens, momentum=momentum), delta, starts)


@pytest.mark.parametrize(("key_size", "value_size", "lead"), SIZES)
@pytest.mark.parametrize("momentum", ["none", "zeros"])
def test_a_chunk_equals_its_tokens_at_awkward_sizes(
    key_size: int, value_size: int, lead: tuple[int, ...], momentum: str
) -> None:
    """Key and value sizes of 1, primes and no powers of two, with none to three leading dimensions."""
    assert_same_as_tokens(draw_case(9, key_size, value_size, lead, momentum), 1.0)


@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lr", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("retention", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("momentum", ["none", "some"])
def test_a_chunk_equals_its_tokens_at_the_limits_of_the_rates(
    correlation: float, lr: float, retention: float, momentum: str
) -> None:
    """No step, full steps, nothing forgotten, retention at its clamp (drawn as 0), alike and identical keys."""
    case = draw_case(33, momentum=momentum, correlation=correlation, lr=lr, retention=retention)
    assert_same_as_tokens(case, 1.0)


def test_a_delta_between_none_and_full_is_exact_too() -> None:
    """The decay along the key may be scaled."""
    for momentum in MOMENTA:
        assert_same_as_tokens(draw_case(12, momentum=momentum), 0.3)


def test_momentum_of_zero_is_no_momentum() -> None:
    """Shares of 0 give what no momentum gives, whatever the surprise was; the surprise left is the last step."""
    case = draw_case(16, momentum="some")
    plain = case.gates.__class__(case.gates.lr, case.gates.log_retention)
    none = case.gates.__class__(case.gates.lr, case.gates.log_retention, torch.zeros_like(case.gates.lr))
    with_zeros = write_chunk(case.weights, case.keys, case.residuals, none, 1.0, case.surprise)
    without = write_chunk(case.weights, case.keys, case.residuals, plain, 1.0)

    torch.testing.assert_close(with_zeros.final()[0], without.final()[0], **EXACT)
    last = -case.gates.lr[..., -1, None, None] * case.keys[..., -1, :, None] * case.residuals[..., -1, None, :]
    torch.testing.assert_close(with_zeros.final()[1], last, **EXACT)


def test_memories_that_share_keys_may_be_one_tall_memory() -> None:
    """Memories of value sizes 5, 1 and 3 written together, side by side, equal the three written apart."""
    case = draw_case(17, key_size=6, value_size=9, momentum="some")
    together = write_chunk(case.weights, case.keys, case.residuals, case.gates, 1.0, case.surprise).final()
    sizes = (5, 1, 3)
    parts = zip(*(tensor.split(sizes, -1) for tensor in (case.weights, case.residuals, case.surprise)), strict=True)
    apart = [write_chunk(w, case.keys, r, case.gates, 1.0, s).final() for w, r, s in parts]

    torch.testing.assert_close(together[0], torch.cat([weights for weights, _ in apart], -1), **EXACT)
    torch.testing.assert_close(together[1], torch.cat([surprise for _, surprise in apart], -1), **EXACT)


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_some_columns_can_be_read_alone(momentum: str) -> None:
    """The write into columns 2 to 4 reads, and leaves, what the whole write has in those columns."""
    case = draw_case(9, value_size=6, momentum=momentum)
    whole = write_chunk(case.weights, case.keys, case.residuals, case.gates, 1.0, case.surprise)
    part, queries = whole.columns(slice(2, 5)), draw(*case.keys.shape)

    torch.testing.assert_close(part.read(queries), whole.read(queries)[..., 2:5], **EXACT)
    for ours, theirs in zip(part.final(), whole.final(), strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs[..., 2:5], **EXACT)


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_one_of_several_memories_can_be_picked(momentum: str) -> None:
    """Memory 2 of 4 that share keys and rates reads, and leaves, what it does among the others."""
    case = draw_case(9, lead=(2, 4), momentum=momentum)
    keys, gates = case.keys[:, :1], case.gates.mapped(lambda rate: rate[:, :1])
    whole = write_chunk(case.weights, keys, case.residuals, gates, 1.0, case.surprise)
    picked, queries = whole.select(2), draw(*case.keys.shape)

    torch.testing.assert_close(picked.read(queries[:, 2]), whole.read(queries)[:, 2], **EXACT)
    torch.testing.assert_close(picked.final()[0], whole.final()[0][:, 2], **EXACT)


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_keys_and_rates_may_be_shared_by_a_leading_dimension(momentum: str) -> None:
    """Keys and rates with a leading 1 serve several memories, as if they had been repeated."""
    case = draw_case(17, lead=(2, 4), momentum=momentum)
    keys, gates = case.keys[:, :1], case.gates.mapped(lambda rate: rate[:, :1])
    repeated = case.gates.mapped(lambda rate: rate[:, :1].expand(2, 4, 17))
    ours = write_chunk(case.weights, keys, case.residuals, gates, 1.0, case.surprise)
    theirs = write_chunk(case.weights, keys.expand_as(case.keys), case.residuals, repeated, 1.0, case.surprise)

    torch.testing.assert_close(ours.final()[0], theirs.final()[0], **EXACT)
    queries = draw(*case.keys.shape)
    torch.testing.assert_close(ours.read(queries), theirs.read(queries), **EXACT)


def test_float32_stays_near_float64() -> None:
    """With full steps along keys of correlation 0.9, float32 loses about as much as its own recurrence does."""
    case = draw_case(64, 64, 64, (9,), correlation=0.9, lr=1.0, retention=0.99)
    exact = reference.write_tokens(case.weights, case.keys, case.residuals, case.gates, 1.0)[0][-1]
    low = case.mapped(torch.Tensor.float)
    chunk = write_chunk(low.weights, low.keys, low.residuals, low.gates, 1.0).final()[0]

    # 24 bits are 6e-8; 64 steps that each amplify by at most the condition of a step leave 1e-5 as a wide margin.
    assert (chunk.double() - exact).norm() / exact.norm() < 1e-5


def test_a_write_with_momentum_needs_the_surprise_so_far() -> None:
    """Rates with momentum and no surprise are refused with what to pass."""
    case = draw_case(4, momentum="some")
    with pytest.raises(ValueError, match="pass zeros"):
        write_chunk(case.weights, case.keys, case.residuals, case.gates, 1.0)
