"""The study of cards: its steps against a plain Llama that reads every card by itself, and when they shorten."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hope_kernels import products
from plain_llama import llama
from torch.nn import functional
from toys import CONFIG, MODEL, make_params

from hope_server.engine import study
from hope_server.engine.cards import Card, CardStep
from hope_server.engine.rehearsal import Piece
from hope_server.engine.study import LAST_STEP, SURPRISE, Study, cut, lay_out, reach_of
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import KeyStatistics, whitening_of
from hope_server.model.params import Params, random_weights
from hope_server.model.recognition import GeneralKeys

SYSTEM = (256, 9, 10, 257)
STEP: CardStep = (
    Card((31, 32, 33), (34, 35, 257), sees_system=True),
    Card((256, 40), (41, 257)),
    Card((50,), (51, 52, 53), sees_system=True, skips_first=True),
)
SPEC = LevelSpec("slow", (1, 2), "dense", update_period=16, rule="sgd", lr=0.5, norm_cap=1e9, is_whitened=True)


def bench(spec: LevelSpec = SPEC) -> tuple[HopeModel, Params, torch.Tensor, KeyStatistics]:
    """A toy model with this one level, weights [1, P] that have learned before, and drawn key statistics."""
    model = HopeModel(replace(CONFIG, levels=(spec,)), torch.float64)
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(2, 80, MODEL.intermediate_size, dtype=torch.float64, generator=generator)
    whitening = {block: whitening_of(part.mT @ part / 80) for block, part in zip(spec.blocks, keys, strict=True)}
    drift = torch.randn(1, model.memory.layouts["slow"].num_weights, dtype=torch.float64, generator=generator) / 50
    return model, make_params(), drift.bfloat16().double(), KeyStatistics(whitening, {})


def deltas(flat: torch.Tensor) -> torch.Tensor:
    """The two matrices [2, D, F] of flat weights [1, P]."""
    return flat.view(2, MODEL.hidden_size, MODEL.intermediate_size)


def plain_logits(matrices: torch.Tensor) -> list[torch.Tensor]:
    """What predicts the replies of the step, each card read alone, behind the system's tokens where it sees them."""
    weights = random_weights(MODEL, 0, torch.float64)
    for block, matrix in zip(SPEC.blocks, matrices, strict=True):
        weights[f"layers.{block}.down.weight"] = weights[f"layers.{block}.down.weight"] + matrix
    found = []
    for card in STEP:
        prompt = (*SYSTEM, *card.prompt) if card.sees_system else card.prompt
        logits, _ = llama(weights, torch.tensor((*prompt, *card.reply)))
        found.append(logits[len(prompt) + card.skips_first - 1 : -1])
    return found


def plain_loss(matrices: torch.Tensor) -> torch.Tensor:
    """Mean loss of the step's replies."""
    replies = [torch.tensor(card.reply[card.skips_first :]) for card in STEP]
    losses = [
        functional.cross_entropy(logits, reply, reduction="none")
        for logits, reply in zip(plain_logits(matrices), replies, strict=True)
    ]
    return torch.cat(losses).mean()


def test_a_step_follows_the_whitened_gradient_of_a_plain_llama() -> None:
    """Cards that share the system message are computed as if each had it alone; descent is preconditioned by WᵀW."""
    model, params, start, statistics = bench()
    job = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM)
    job.advance(params)
    matrices = deltas(start).clone().requires_grad_()
    loss = plain_loss(matrices)
    (gradient,) = torch.autograd.grad(loss, matrices)
    whitening = torch.stack([statistics.whitening[block] for block in SPEC.blocks])
    expected = SPEC.lr * gradient @ whitening.mT @ whitening
    assert loss.item() > SURPRISE
    assert job.losses == [pytest.approx(loss.item(), rel=1e-12)]
    # float64 through four layers, and a preconditioner of condition 1e4.
    torch.testing.assert_close(deltas(start - job.weights), expected, rtol=1e-6, atol=1e-10)


def test_muon_moves_every_direction_of_whitened_keys_alike() -> None:
    """The step's singular values in whitened keys lie where five Newton-Schulz iterations leave them, near its lr."""
    spec = replace(SPEC, rule="muon", lr=0.1, betas=(0.0, 0.0))
    model, params, start, statistics = bench(spec)
    job = Study(model, spec, start, [STEP, STEP], statistics, SYSTEM)
    job.advance(params)
    whitening = torch.stack([statistics.whitening[block] for block in spec.blocks])
    step = deltas(job.weights - start) @ torch.linalg.inv(whitening)
    # Muon's scale for a matrix of this shape, then the band that its polynomial maps to. 8 tokens predict something.
    values = torch.linalg.svdvals(step) / (0.1 * 0.2 * MODEL.intermediate_size**0.5)
    assert bool((values[:, :4] > 0.5).all())
    assert bool((values < 1.4).all())


def test_steps_shorten_towards_the_end() -> None:
    """Of two equal steps the one that comes last is the shorter by the schedule alone."""
    model, params, start, statistics = bench()
    moved = []
    for number in range(2):
        job = Study(model, SPEC, start, [STEP] * 3, statistics, SYSTEM)
        job.num_done = number
        job.advance(params)
        moved.append(job.weights - start)
    torch.testing.assert_close(moved[1], moved[0] * (1 - (1 - LAST_STEP) / 3))


def test_steps_are_as_long_as_they_may_reach() -> None:
    """A step that reaches a third of the way goes a third of the way."""
    model, params, start, statistics = bench()
    moved = []
    for reach in (1.0, 1 / 3):
        job = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM, reach=reach)
        job.advance(params)
        moved.append(job.weights - start)
    torch.testing.assert_close(moved[1], moved[0] / 3)


def test_a_finished_study_holds_little_but_its_weights() -> None:
    """Many sessions may wait with one: the whitening is everybody's, and what steps are made with is gone."""
    model, params, start, statistics = bench()
    jobs = [Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM) for _ in range(2)]
    assert jobs[0]._whitening is jobs[1]._whitening
    while not jobs[0].is_done:
        jobs[0].advance(params)

    def held(job: Study) -> int:
        """Bytes of the blocks of memory that its tensors lie in, each once."""
        found = [job.weights, job._start, *job._moments.values(), *job._more]
        blocks = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
        return sum(blocks.values())

    assert held(jobs[0]) == start.nbytes
    assert held(jobs[1]) >= 3 * start.nbytes


def test_what_a_study_keeps_is_one_block_from_its_first_step_to_its_last() -> None:
    """Vectors that live long among those that come and go would leave holes that no other study can use."""
    model, params, start, statistics = bench()
    job = Study(model, SPEC, start, [STEP, STEP, STEP], statistics, SYSTEM)
    places = []
    for _ in range(2):
        job.advance(params)
        kept = [job.weights, job._start, *job._moments.values(), *job._more]
        places.append([tensor.untyped_storage().data_ptr() for tensor in kept])

    assert len(set(places[0])) == 1
    assert places[0] == places[1]


@pytest.mark.parametrize(
    ("new", "past", "reach"),
    [
        ((1,), (8,), 8**-0.5),
        ((1,), (8, 1, 1, 1), 8**-0.5),
        ((1, 2), (8,), 0.5),
        ((8,), (1,), 1.0),
        # What was learned with more passes than are thorough takes nothing from what comes later.
        ((8,), (100,), 1.0),
        ((2,), (100,), 0.5),
        # Nothing before, or nothing asked for.
        ((1,), (), 1.0),
        ((1,), (0,), 1.0),
        ((0,), (8,), 1.0),
        ((), (8,), 1.0),
    ],
)
def test_what_is_only_read_through_is_written_shorter_than_lessons_before(
    new: tuple[int, ...], past: tuple[int, ...], reach: float
) -> None:
    """The root of the passes asked for, beside the most that the past had, up to what is thorough."""
    pieces, earlier = ([Piece((1,), passes, 0) for passes in asked] for asked in (new, past))
    assert reach_of(pieces, earlier) == pytest.approx(reach)


def test_what_does_not_surprise_is_hardly_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose loss is below the threshold is shorter by their ratio: repeated text comes to rest."""
    model, params, start, statistics = bench()
    moved = []
    for threshold in (SURPRISE, 100.0):
        monkeypatch.setattr(study, "SURPRISE", threshold)
        job = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM)
        job.advance(params)
        moved.append(job.weights - start)
    assert SURPRISE < job.losses[0] < 100
    torch.testing.assert_close(moved[1], moved[0] * job.losses[0] / 100)


def test_a_value_that_is_not_finite_ends_it_without_a_change() -> None:
    """The job is over and its weights are those it began with."""
    model, params, start, statistics = bench()
    broken = replace(params, head=params.head * torch.nan)
    job = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM)
    job.advance(broken)
    assert job.is_done
    assert not job.is_finite
    assert torch.equal(job.weights, start)


def test_the_result_can_be_stored_without_loss() -> None:
    """When it is done its weights are bfloat16-exact."""
    model, params, start, statistics = bench()
    job = Study(model, SPEC, start, [STEP], statistics, SYSTEM)
    job.advance(params)
    assert job.is_done
    assert torch.equal(job.weights.bfloat16().double(), job.weights)


def test_cards_are_laid_out_behind_one_system_message() -> None:
    """By hand: each card a segment, and every token of a reply predicted but those that nothing tells."""
    laid = lay_out(STEP, SYSTEM)
    assert laid.tokens.tolist() == [256, 9, 10, 257, 31, 32, 33, 34, 35, 257, 256, 40, 41, 257, 50, 51, 52, 53]
    assert laid.segments.tolist() == [0] * 4 + [1] * 6 + [2] * 4 + [3] * 4
    assert laid.sees_first.tolist() == [True, True, False, True]
    assert laid.learned.tolist() == [6, 7, 8, 11, 12, 15, 16]


def test_a_step_in_parts_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed card by card, with nothing written in between, it ends at the same weights."""
    model, params, start, statistics = bench()
    whole = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM)
    monkeypatch.setattr(study, "PART", 1)
    parts = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM)
    assert (whole.num_steps, parts.num_steps) == (2, 6)
    for number in range(6):
        parts.advance(params)
        assert torch.equal(parts.weights, start) == (number < 2)
    for _ in range(2):
        whole.advance(params)
    # Both end rounded to bfloat16, which may fall to either side.
    torch.testing.assert_close(parts.weights, whole.weights, rtol=2**-7, atol=1e-6)
    assert parts.losses[0] != parts.losses[1]


def test_what_is_known_does_not_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens below the threshold add nothing to the gradient: with all of them there, nothing is written."""
    model, params, start, statistics = bench()
    monkeypatch.setattr(study, "KNOWN", 1e9)
    job = Study(model, SPEC, start, [STEP], statistics, SYSTEM)
    job.advance(params)
    assert job.is_done and job.is_finite
    assert torch.equal(job.weights, start)
    assert job.losses[0] > SURPRISE


def test_parts_are_of_like_size_and_lose_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards stay in order, 6, 4 and 4 tokens long; a card longer than a part stands alone."""
    for size, expected in ((20, [STEP]), (10, [STEP[:1], STEP[1:]]), (5, [STEP[:1], STEP[1:2], STEP[2:]])):
        monkeypatch.setattr(study, "PART", size)
        assert cut(STEP) == expected
    many = tuple(Card((30,) * 9, (40,)) for _ in range(50))
    monkeypatch.setattr(study, "PART", 480)
    assert [len(part) for part in cut(many)] == [25, 25]
    assert cut(()) == [()]


def test_a_gated_level_studies_without_its_gate_and_sets_it_at_the_end() -> None:
    """Its matrices are those of the level without a gate; thresholds are measured on what was learned, and stored."""
    model, params, start, statistics = bench()
    spec = replace(SPEC, gate=0.6)
    gated = HopeModel(replace(CONFIG, levels=(spec,)), torch.float64)
    generator = torch.Generator().manual_seed(5)
    keys = torch.randn(2, 40, MODEL.intermediate_size, dtype=torch.float64, generator=generator)
    general = GeneralKeys(
        dict(zip(SPEC.blocks, keys, strict=True)), dict.fromkeys(SPEC.blocks, torch.ones(40).double())
    )
    plain = Study(model, SPEC, start, [STEP, STEP], statistics, SYSTEM)
    # Thresholds that would silence it, were they heeded.
    shut = torch.cat([start, torch.full((1, 2), 1e6).double()], dim=1)
    job = Study(gated, spec, shut, [STEP, STEP], statistics, SYSTEM, general)
    for _ in range(2):
        assert not job.weights[:, -2:].any()
        plain.advance(params)
        job.advance(params)
    assert torch.equal(job.weights[:, :-2], plain.weights)
    lengths = (keys @ deltas(job.weights[:, :-2]).mT).norm(dim=-1)
    found = job.weights[0, -2:]
    assert torch.equal(found.bfloat16().double(), found)
    assert [int((row < threshold).sum()) for row, threshold in zip(lengths, found, strict=True)] == [24, 24]


def test_half_products_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study in float32 whose products round their factors goes where the exact one goes, on any processor."""
    spec = replace(SPEC, rule="muon", lr=0.02, betas=(0.0, 0.0))
    model, params, start, statistics = bench(spec)
    exact = Study(model, spec, start, [STEP], statistics, SYSTEM)
    exact.advance(params)
    monkeypatch.setattr(products, "_multiplies_halves", lambda: True)
    single = HopeModel(model.config, torch.float32)
    rounded = Study(single, spec, start.float(), [STEP], statistics, SYSTEM)
    rounded.advance(make_params(torch.float32))
    assert rounded.weights.dtype == torch.float32
    found, expected = (rounded.weights - start).double(), exact.weights - start
    # A gradient of five tokens has directions that are almost nothing; Muon makes them as long as the others.
    assert functional.cosine_similarity(found, expected).item() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_rounded_once_for_all_studies(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of attention, MLPs and head alone; the network itself where nothing is rounded, another for another."""
    monkeypatch.setattr(study, "factor_dtype", lambda _: dtype)
    params, rounded = make_params(torch.float32), study.RoundedWeights()
    found = rounded.of(params)
    assert rounded.of(params) is found
    assert (found is params) == (dtype == torch.float32)
    for ours, theirs in zip(params.blocks, found.blocks, strict=True):
        for name in ("gate_up", "down", "qkv", "out"):
            assert torch.equal(getattr(theirs, name), getattr(ours, name).to(dtype))
        assert theirs.attn_norm is ours.attn_norm
    assert found.embed is params.embed and torch.equal(found.head, params.head.to(dtype))
    other = make_params(torch.float32)
    assert torch.equal(rounded.of(other).embed, other.embed) and rounded.of(other).embed is other.embed
