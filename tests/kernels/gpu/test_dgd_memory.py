"""The GPU kernels of the self-modifying matrix memory equal the token-by-token recurrence in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; run make test-kernels")

from hope_kernels.dgd_memory import Gates, gpu, reference
from hope_kernels.dgd_memory.layout import Layout
from memory_cases import draw_keys

Error = Callable[[torch.Tensor, torch.Tensor], float]

# Sums of up to 128 products in float32 are off by about 3e-7; what one chunk writes comes back through the keys, values
# and rates of the next, which multiplies that by a few. A wrong formula is off by 1e-3 or more. Half precision: what
# rounding the outputs costs, and on a GPU products in tf32 too.
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
UNUSED = 1e30
ADAPTIVE = ("k", "v", "q", "lr", "retention")
LAYOUTS = {
    "default": Layout(16),
    "everything adaptive": Layout(16, adaptive=ADAPTIVE),
    "nothing adaptive": Layout(16, adaptive=()),
    "rates alone": Layout(16, adaptive=("lr", "retention")),
    "values alone, given targets": Layout(16, adaptive=("v",), self_targets=False),
    "no residual path": Layout(16, is_residual=False),
    "no residual path, given targets": Layout(16, is_residual=False, self_targets=False),
    "dot product": Layout(16, squared=False),
    "dot product, given targets": Layout(16, squared=False, self_targets=False),
    "no decay along the key": Layout(16, delta=False, lr_share=0.25),
    "no retention": Layout(16, adaptive=("k", "v", "lr"), has_retention=False, max_lr=0.5),
    "one head sums": Layout(16, num_sums=1),
    "queries too, one head sums": Layout(16, adaptive=ADAPTIVE, num_sums=1),
}


@dataclass(frozen=True, slots=True)
class Case:
    """Rows in a pool three times their number, unused slots filled; a padding row, without tokens or with, at the end.

    lengths: tokens of each row, the padding row's last.
    """

    layout: Layout
    lengths: list[int]
    pool: torch.Tensor
    surprises: torch.Tensor | None
    slots: torch.Tensor
    bounds: torch.Tensor
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

    def rows(self) -> list[tuple[int, int, slice]]:
        """Number, slot and tokens of every row that is not padding."""
        stops = self.bounds.tolist()
        return [(i, s, slice(stops[i], stops[i + 1])) for i, s in enumerate(self.slots.tolist()) if s >= 0]

    def step(self, tokens: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """One token of every row, by its place in the row; the row's first where it has no such token."""
        starts, lengths = self.bounds[:-1].tolist(), self.lengths
        places = [start + (t if t < n else 0) for start, t, n in zip(starts, tokens, lengths, strict=True)]
        return tuple(part[places].contiguous() for part in self.inputs)


def draw_case(
    layout: Layout,
    lengths: list[int],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    heads: int = 2,
    correlation: float = 0.0,
    lr: float | None = None,
    retention: float | None = None,
    padding: int = 3,
) -> Case:
    """Unit inputs and random rates; lr and retention: slow rates of every token."""
    lengths = [*lengths, padding]
    tokens, size, rows = sum(lengths), layout.head_dim, len(lengths)
    vectors = [draw_keys(heads, tokens, size, correlation=correlation).transpose(0, 1) for _ in range(3)]
    rates = torch.randn(tokens, heads, layout.num_rates, dtype=torch.float64)
    if lr is not None:
        rates[..., 0] = lr
    if layout.has_retention:
        rates[..., 1] = rates[..., 1] - 3 if retention is None else retention
    shape = (3 * rows, heads, size, layout.num_columns)
    slots = torch.randperm(3 * rows)[:rows]
    slots[-1] = -1
    pools = []
    for is_there in (True, layout.has_momentum):
        pool = torch.full(shape, UNUSED)
        pool[slots[:-1]] = torch.randn(rows - 1, *shape[1:]) / size**0.5
        pools.append(pool.to(device) if is_there else None)
    assert pools[0] is not None
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    query, key, value = (part.to(device, dtype).contiguous() for part in vectors)
    inputs = (query, key, value, rates.float().to(device))
    return Case(layout, lengths, pools[0], pools[1], slots.int().to(device), bounds.to(device), inputs)


def expect(
    case: Case, chunk_size: int, *, writes_tail: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Outputs, pool and momenta of the recurrence in float64; unused slots as they are, outputs of padding 0."""
    query, key, value, rates = (part.double().cpu() for part in case.inputs)
    out = torch.zeros_like(query)
    pool = case.pool.double().cpu().clone()
    momenta = None if case.surprises is None else case.surprises.double().cpu().clone()
    for _, slot, tokens in case.rows():
        length = tokens.stop - tokens.start
        whole = slice(tokens.start, tokens.stop if writes_tail else tokens.stop - length % chunk_size)
        for head in range(query.shape[1]):
            before = None if momenta is None else momenta[slot, head]
            spans = [tokens] if whole == tokens else [tokens, whole]
            for span in spans:
                if span.start == span.stop:
                    continue
                parts = [part[span, head] for part in (query, key, value, rates)]
                found, memory, momentum = reference.advance_tokens(
                    case.layout, pool[slot, head], before, *parts, chunk_size, head=head
                )
                if span == tokens:
                    out[tokens, head] = found
                if span == whole:
                    pool[slot, head] = memory
                    if momenta is not None and momentum is not None:
                        momenta[slot, head] = momentum
    return out, pool, momenta


def advance(case: Case, chunk_size: int, *, writes_tail: bool = True) -> torch.Tensor:
    """What the kernels make of the case, in its pool."""
    surprises = case.surprises
    return gpu.advance(
        case.pool,
        case.slots,
        *case.inputs,
        case.bounds,
        case.layout,
        chunk_size,
        surprises=surprises,
        writes_tail=writes_tail,
    )


def assert_pool(case: Case, expected: torch.Tensor, relative_error: Error, limit: float) -> None:
    """Slots in use are near what is expected, all others bit for bit what they were."""
    used = case.slots[case.slots >= 0].long().cpu()
    assert relative_error(case.pool.cpu()[used], expected[used]) < limit
    others = torch.ones(len(case.pool), dtype=torch.bool)
    others[used] = False
    assert torch.equal(case.pool.cpu()[others], torch.full_like(case.pool.cpu()[others], UNUSED))


def assert_advances(
    case: Case, chunk_size: int, relative_error: Error, *, writes_tail: bool = True, limit: float | None = None
) -> None:
    """Outputs, memories and momenta are those of the recurrence."""
    limit = limit or LIMITS[case.inputs[0].dtype]
    out, pool, momenta = expect(case, chunk_size, writes_tail=writes_tail)
    found = advance(case, chunk_size, writes_tail=writes_tail)
    assert relative_error(found, out) < limit
    assert_pool(case, pool, relative_error, limit)
    if momenta is not None:
        assert case.surprises is not None
        assert_pool(replace(case, pool=case.surprises), momenta, relative_error, limit)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_run_equals_its_tokens(layout: Layout, device: torch.device, relative_error: Error) -> None:
    """Every kind of layout, three chunks of which the last is one token long, another row of one token."""
    assert_advances(draw_case(layout, [17, 1], device), 8, relative_error)


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 20, 32])
def test_a_run_equals_its_tokens_in_chunks_of_any_size(
    chunk_size: int, device: torch.device, relative_error: Error
) -> None:
    """Chunks below, at and above a tile; rows of 1, C - 1, C and C + 1 tokens."""
    layout = LAYOUTS["default"]
    lengths = [1, max(chunk_size - 1, 2), chunk_size, chunk_size + 1]
    assert_advances(draw_case(layout, lengths, device, heads=1), chunk_size, relative_error)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("is_adaptive", [False, True], ids=["plain", "queries too"])
def test_a_run_equals_its_tokens_at_every_head_size(
    size: int, is_adaptive: bool, device: torch.device, relative_error: Error
) -> None:
    """Larger heads, whose columns take several blocks and whose keys several slabs."""
    layout = Layout(size, adaptive=ADAPTIVE) if is_adaptive else Layout(size)
    assert_advances(draw_case(layout, [17], device, heads=1), 16, relative_error, writes_tail=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("layout", [LAYOUTS["default"], LAYOUTS["everything adaptive"]], ids=["default", "queries too"])
def test_inputs_may_be_in_half_precision(
    layout: Layout, dtype: torch.dtype, device: torch.device, relative_error: Error
) -> None:
    """Outputs have the type of the queries; memories stay float32."""
    assert_advances(draw_case(layout, [33, 16], device, dtype=dtype), 16, relative_error)


@pytest.mark.parametrize("layout", [LAYOUTS["default"], LAYOUTS["everything adaptive"]], ids=["default", "queries too"])
@pytest.mark.parametrize("correlation", [0.9, 1.0])
def test_alike_and_identical_keys(
    layout: Layout, correlation: float, device: torch.device, relative_error: Error
) -> None:
    """Full steps along one direction, where a series for the inverse would lose every digit."""
    case = draw_case(layout, [32], device, correlation=correlation, lr=9.0, retention=-9.0)
    assert_advances(case, 32, relative_error)


@pytest.mark.parametrize("layout", [LAYOUTS["rates alone"], replace(LAYOUTS["rates alone"], has_momentum=True)])
def test_tokens_without_step_and_decay_leave_the_memory(layout: Layout, device: torch.device) -> None:
    """lr 0 and retention 1 keep every bit of it."""
    layout = replace(layout, adaptive=())
    case = draw_case(layout, [20], device, lr=-200.0, retention=-200.0)
    if case.surprises is not None:
        case.surprises[case.slots[:-1].long()] = 0.0
    before = case.pool.clone()
    advance(case, 16)
    assert torch.equal(case.pool, before)


def test_the_tail_of_a_row_may_be_left_unwritten(device: torch.device, relative_error: Error) -> None:
    """Its tokens are read, the memory stays that of the last whole chunk."""
    for layout in (LAYOUTS["default"], LAYOUTS["everything adaptive"]):
        assert_advances(draw_case(layout, [20, 16, 3], device), 16, relative_error, writes_tail=False)


@pytest.mark.parametrize("layout", ["default", "everything adaptive", "dot product, given targets"])
@pytest.mark.parametrize("lengths", [[17, 1], [40]])
def test_momentum_equals_its_tokens(
    layout: str, lengths: list[int], device: torch.device, relative_error: Error
) -> None:
    """Surprise is carried on over tiles, chunks and tails."""
    assert_advances(draw_case(replace(LAYOUTS[layout], has_momentum=True), lengths, device), 20, relative_error)


def test_what_memories_make_of_inputs(device: torch.device, relative_error: Error) -> None:
    """Keys, values, queries and rates made apart, then written, give the memory of the recurrence."""
    for layout in (LAYOUTS["queries too, one head sums"], replace(LAYOUTS["default"], has_momentum=True)):
        case = draw_case(layout, [19, 7], device)
        _, pool, _ = expect(case, 64)
        query, key, value, rates = gpu.address(case.pool, case.slots, *case.inputs, case.bounds, layout)
        for part in (query, key, value, rates):
            assert not bool(part[case.bounds[-2] :].any())
        gpu.write_chunk(case.pool, case.slots, key, value, rates, case.bounds, layout, case.surprises)
        assert_pool(case, pool, relative_error, LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17])
def test_given_residuals_equal_their_tokens(
    num_tokens: int,
    has_delta: bool,
    has_momentum: bool,
    dtype: torch.dtype,
    device: torch.device,
    relative_error: Error,
) -> None:
    """A memory of 21 columns, written with residuals of the caller's."""
    layout = Layout(16, has_momentum=has_momentum)
    case = draw_case(layout, [num_tokens], device, dtype=dtype, heads=1, padding=1)
    pool = case.pool[..., :21].contiguous()
    surprises = None if case.surprises is None else case.surprises[..., :21].contiguous()
    residuals = torch.randn(num_tokens + 1, 1, 21).to(device, dtype)
    rates = torch.rand(num_tokens + 1, 1, 3).to(device)
    rates[..., 1] = torch.nn.functional.logsigmoid(torch.randn(num_tokens + 1, 1) + 3).to(device)
    slot = int(case.slots[0])
    lr, log_retention, momentum = rates[:-1, 0].double().cpu().unbind(-1)
    states, momenta = reference.write_tokens(
        pool[slot, 0].double().cpu(),
        case.inputs[1][:-1, 0].double().cpu(),
        residuals[:-1, 0].double().cpu(),
        Gates(lr, log_retention, momentum if has_momentum else None),
        float(has_delta),
        None if surprises is None else surprises[slot, 0].double().cpu(),
    )
    gpu.write_residuals(
        pool, case.slots, case.inputs[1], residuals, rates, case.bounds, has_delta=has_delta, surprises=surprises
    )
    assert relative_error(pool[slot, 0], states[-1]) < LIMITS[dtype]
    if surprises is not None:
        assert relative_error(surprises[slot, 0], momenta[-1]) < LIMITS[dtype]


def run_deferred(case: Case, chunk_size: int, num_steps: int) -> tuple[torch.Tensor, gpu.Ring]:
    """Read every row's tokens one by one, write them when a chunk is full: outputs [steps, B, H, K], and the ring."""
    query = case.inputs[0]
    ring = gpu.Ring.empty(len(case.pool), query.shape[1], chunk_size, case.layout, query.dtype, query.device)
    found = []
    for t in range(num_steps):
        found.append(gpu.read_step(case.pool, case.slots, *case.step([t] * len(case.lengths)), ring, case.layout))
        gpu.flush(case.pool, case.slots, ring, case.layout, surprises=case.surprises)
    return torch.stack(found), ring


@pytest.mark.parametrize(
    "layout",
    [
        LAYOUTS["default"],
        LAYOUTS["queries too, one head sums"],
        LAYOUTS["no residual path"],
        replace(LAYOUTS["default"], has_momentum=True),
    ],
    ids=["default", "queries too", "no residual path", "momentum"],
)
def test_deferred_decode_equals_its_tokens(layout: Layout, device: torch.device, relative_error: Error) -> None:
    """Tokens read one at a time and written a chunk at a time, the last one by force, are the recurrence."""
    case = draw_case(layout, [11, 11], device, padding=1)
    out, pool, _ = expect(case, 4)
    found, ring = run_deferred(case, 4, 11)
    assert ring.cursors[case.slots[:-1].long()].tolist() == [3, 3]
    gpu.flush(case.pool, case.slots, ring, layout, is_forced=True, surprises=case.surprises)
    assert not bool(ring.cursors.any())
    for i, _, tokens in case.rows():
        assert relative_error(found[:, i], out[tokens]) < LIMITS[torch.float32]
    assert not bool(found[:, -1].any())
    assert_pool(case, pool, relative_error, LIMITS[torch.float32])


def test_deferred_decode_equals_the_chunk_form(device: torch.device, relative_error: Error) -> None:
    """The same tokens decoded one by one, and advanced over as a whole."""
    case = draw_case(Layout(32), [18], device, padding=1)
    whole = replace(case, pool=case.pool.clone())
    expected = advance(whole, 16, writes_tail=False)
    found, ring = run_deferred(case, 16, 18)
    assert int(ring.cursors[case.slots[0]]) == 2
    assert relative_error(found[:, 0], expected[:18]) < LIMITS[torch.float32]
    assert_pool(case, whole.pool.double().cpu(), relative_error, LIMITS[torch.float32])


def test_a_flush_leaves_rows_whose_chunk_is_not_full(device: torch.device) -> None:
    """Their memory, ring and cursor stay bit for bit, while another row's is written."""
    case = draw_case(LAYOUTS["default"], [4, 3], device, padding=1)
    ring = gpu.Ring.empty(len(case.pool), 2, 4, case.layout, torch.float32, device)
    for t in range(4):
        slots = case.slots.clone()
        if t == 3:
            slots[1] = -1
        gpu.read_step(case.pool, slots, *case.step([t] * 3), ring, case.layout)
    before, held = case.pool.clone(), ring.keys.clone()
    gpu.flush(case.pool, case.slots, ring, case.layout)
    first, second = case.slots[:2].tolist()
    assert ring.cursors[[first, second]].tolist() == [0, 3]
    assert torch.equal(case.pool[second], before[second]) and torch.equal(ring.keys, held)
    assert not torch.equal(case.pool[first], before[first])


def test_a_full_ring_is_not_overrun_unnoticed(device: torch.device) -> None:
    """The token that has no place reads NaN, and no other slot's part of the ring is touched."""
    case = draw_case(LAYOUTS["default"], [3], device, padding=1)
    ring = gpu.Ring.empty(len(case.pool), 2, 2, case.layout, torch.float32, device)
    for t in range(2):
        assert gpu.read_step(case.pool, case.slots, *case.step([t, 0]), ring, case.layout).isfinite().all()
    held = ring.keys.clone()
    assert gpu.read_step(case.pool, case.slots, *case.step([2, 0]), ring, case.layout)[0].isnan().all()
    assert torch.equal(ring.keys, held)


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    """Each is named, with the rule it breaks."""
    case = draw_case(LAYOUTS["default"], [4], device)
    query, key, value, rates = case.inputs
    pool, slots, bounds, layout = case.pool, case.slots, case.bounds, case.layout

    def refused(argument: str, *arguments: object, chunk_size: int = 4) -> None:
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            gpu.advance(*arguments, chunk_size)  # type: ignore[arg-type]

    refused("pool", pool.double(), slots, query, key, value, rates, bounds, layout)
    refused("pool", pool[..., :-1].contiguous(), slots, query, key, value, rates, bounds, layout)
    refused("pool", pool.mT.contiguous().mT, slots, query, key, value, rates, bounds, layout)
    refused("slots", pool, slots.long(), query, key, value, rates, bounds, layout)
    refused("cu_seqlens", pool, slots, query, key, value, rates, bounds[:-1], layout)
    refused("query", pool, slots, query.double(), key, value, rates, bounds, layout)
    refused("key", pool, slots, query, key.half(), value, rates, bounds, layout)
    refused("value", pool, slots, query, key, value[:-1], rates, bounds, layout)
    refused("rates", pool, slots, query, key, value, rates[..., :1].contiguous(), bounds, layout)
    refused("layout.head_dim", pool, slots, query, key, value, rates, bounds, Layout(24))
    refused("layout.hidden_size", pool, slots, query, key, value, rates, bounds, Layout(16, hidden_size=8))
    three = rates[..., :1].repeat(1, 1, 3)
    refused("surprises", pool, slots, query, key, value, three, bounds, replace(layout, has_momentum=True))
    momentum = Layout(128, has_momentum=True)
    refused("layout.has_momentum", pool, slots, query, key, value, rates, bounds, momentum)
    refused("chunk_size", pool, slots, query, key, value, rates, bounds, layout, chunk_size=0)
    if device.type == "cpu":
        refused("slots", pool, slots.clone().fill_(len(pool)), query, key, value, rates, bounds, layout)
        refused("slots", pool, slots.clone().fill_(0), query, key, value, rates, bounds, layout)
