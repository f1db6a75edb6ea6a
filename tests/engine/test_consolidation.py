"""The consolidation pass: its gradient against a plain Llama, its guard against the exact divergence, and its
independence of when it is computed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_llama import chain_rule, llama, merged
from torch.nn import functional
from toys import CONFIG, MODEL, SLOW, make_params

from hope_server.engine.consolidation import Consolidation, GuardPiece, guard_loss, make_guard
from hope_server.engine.rehearsal import Chain, Frame, Step
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params

FRAME = Frame(((256,), (256, 65)), (257, 10), (256, 66), (11, 12), (257,))
STEP: Step = (
    Chain((31, 32), ((30, 31, 32, 33), (40, 41))),
    Chain((), ((50, 51, 52), (60,), (70, 71))),
    Chain((80,), ((80,),)),
)
# By hand: with a question, the first token of its first passage is predicted too; then all of a passage but its first
# token, and what stands behind each passage; questions take turns.
LAID_OUT = [
    ([256, 31, 32, 257, 10, 30, 31, 32, 33, 11, 12, 40, 41, 257], [4, 5, 6, 7, 8, 9, 11, 12]),
    ([256, 66, 50, 51, 52, 11, 12, 60, 11, 12, 70, 71, 257], [2, 3, 4, 5, 7, 8, 10, 11]),
    ([256, 80, 257, 10, 80, 257], [3, 4]),
]
GUARD_TEXT = (5, 9, 20, 7, 8)
PLAIN_STEP = replace(SLOW, rule="sgd", lr=1.0, norm_cap=1e9)


def bench(spec: LevelSpec = SLOW) -> tuple[HopeModel, Params, torch.Tensor]:
    """A toy model with this one level, and weights [1, P] of a session that has learned before, bfloat16-exact."""
    model = HopeModel(replace(CONFIG, levels=(spec,)), torch.float64)
    drift = torch.randn(1, model.memory.layouts[spec.name].num_weights, dtype=torch.float64) / 10
    return model, make_params(), (model.memory.initial[spec.name] + drift).bfloat16().double()


def finish(job: Consolidation, params: Params) -> torch.Tensor:
    """Advance to the end."""
    while not job.is_done:
        job.advance(params)
    return job.weights


def plain_divergence(teacher: torch.Tensor, logits: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """Mean KL from teacher to logits [T, V] where all but the teacher's best candidates count as one outcome."""
    rows = []
    for before, after in zip(teacher.softmax(-1), logits.softmax(-1), strict=True):
        best = before.argsort(descending=True)[:num_candidates]
        first = torch.cat([before[best], 1 - before[best].sum(0, keepdim=True)])
        second = torch.cat([after[best], 1 - after[best].sum(0, keepdim=True)])
        rows.append((first * (first / second).log()).sum())
    return torch.stack(rows).mean()


def found(logits: torch.Tensor, guard: GuardPiece) -> torch.Tensor:
    """The log-probabilities that logits [T, V] give the guard's candidates."""
    return logits.log_softmax(-1).gather(1, guard.candidates)


@pytest.mark.parametrize("is_guarded", [False, True])
def test_a_step_follows_the_gradient_of_a_plain_llama(is_guarded: bool) -> None:
    """Chains that do not see each other, questions, the guard and its weight: autograd's gradient by the chain rule."""
    model, params, start = bench(PLAIN_STEP)
    guards = make_guard(model, params, [GUARD_TEXT], 16) if is_guarded else []
    job = Consolidation(model, PLAIN_STEP, start, [STEP, STEP], guards, FRAME)
    job.advance(params)
    weights = merged(model, {"slow": start[0]})
    names = [f"layers.{block}.{key}.weight" for block in SLOW.blocks for key in ("gate", "up", "down")]
    leaves = {name: weights[name].requires_grad_() for name in names}
    losses = []
    for tokens, predicts in LAID_OUT:
        logits, _ = llama(weights | leaves, torch.tensor(tokens))
        losses.append(functional.cross_entropy(logits[predicts], torch.tensor(tokens)[1:][predicts], reduction="none"))
    total = loss = torch.cat(losses).mean()
    if is_guarded:
        teacher, _ = llama(merged(model, {}), torch.tensor(GUARD_TEXT))
        logits, _ = llama(weights | leaves, torch.tensor(GUARD_TEXT))
        total = loss + plain_divergence(teacher.detach(), logits, 16)
    dense = dict(zip(names, torch.autograd.grad(total, list(leaves.values())), strict=True))
    expected = chain_rule(model, "slow", start[0], dense)
    # float64 through four layers.
    torch.testing.assert_close(start[0] - job.weights[0], expected, rtol=1e-8, atol=1e-12)
    assert job.losses == [pytest.approx(loss.item(), rel=1e-12)]


def test_several_steps_are_those_of_torchs_adam_on_the_same_gradients() -> None:
    """Each step takes its gradient at the weights the one before left, with moments that begin at zero."""
    spec = replace(SLOW, norm_cap=1e9)
    model, params, start = bench(spec)
    job = Consolidation(model, spec, start, [STEP] * 4, [], FRAME)
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=spec.lr, betas=spec.betas, eps=1e-8)
    for number in range(3):
        job.advance(params)
        probe = Consolidation(model, PLAIN_STEP, leaf.detach(), [STEP] * 5, [], FRAME)
        # The frame's questions take turns with the number of the step.
        probe.num_done = number
        probe.advance(params)
        leaf.grad = leaf.detach() - probe.weights
        optimizer.step()
    # Adam divides by the root of the gradient's square: relative error of the gradient, times three steps.
    torch.testing.assert_close(job.weights, leaf.detach(), rtol=0, atol=1e-8)


def test_questions_take_turns_from_step_to_step() -> None:
    """A passage is asked for in every wording: the same step reads otherwise the next time."""
    model, params, start = bench()
    job = Consolidation(model, replace(SLOW, lr=0.0), start, [STEP[:1]] * 4, [], FRAME)
    finish(job, params)
    assert job.losses[0] == job.losses[2]
    assert job.losses[1] == job.losses[3]
    assert job.losses[0] != job.losses[1]


def test_with_every_candidate_the_guard_is_the_exact_divergence() -> None:
    """Over the whole vocabulary it is the KL from the slow weights' predictions, zero at these predictions."""
    model, params, _ = bench()
    (guard,) = make_guard(model, params, [GUARD_TEXT], MODEL.vocab_size)
    teacher, _ = llama(merged(model, {}), torch.tensor(GUARD_TEXT))
    logits = teacher + torch.randn_like(teacher)
    expected = functional.kl_div(
        logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(guard_loss(found(logits, guard), guard), expected, rtol=1e-10, atol=0)
    assert guard_loss(found(teacher, guard), guard).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("num_candidates", [1, 5, 299])
def test_fewer_candidates_give_the_divergence_with_all_others_as_one(num_candidates: int) -> None:
    """The guard is a lower bound of the exact divergence: it does not see moves among what it lumps together."""
    model, params, _ = bench()
    (guard,) = make_guard(model, params, [GUARD_TEXT], num_candidates)
    (whole,) = make_guard(model, params, [GUARD_TEXT], MODEL.vocab_size)
    teacher, _ = llama(merged(model, {}), torch.tensor(GUARD_TEXT))
    logits = teacher + torch.randn_like(teacher)
    expected = plain_divergence(teacher, logits, num_candidates)
    torch.testing.assert_close(guard_loss(found(logits, guard), guard), expected, rtol=1e-9, atol=0)
    # With one candidate less than words both are the same number, but for the last digit of two sums.
    assert 0 < guard_loss(found(logits, guard), guard).item() <= guard_loss(found(logits, whole), whole).item() + 1e-12


def test_a_guard_of_certain_predictions_is_finite() -> None:
    """Where nothing is left for the rest, neither the loss nor its gradient is infinite."""
    certain = torch.zeros(1, 10, dtype=torch.float64)
    guard = GuardPiece(torch.tensor([1]), torch.tensor([[0]]), certain[:, :1], torch.full((1,), -13.8).double())
    logits = torch.tensor([[1000.0] + [0.0] * 9], dtype=torch.float64, requires_grad=True)
    loss = guard_loss(found(logits, guard), guard)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_the_same_job_gives_the_same_bits() -> None:
    """A job made anew, as after a restart, ends where the first one ended; neither changes what it was given."""
    model, params, start = bench()
    guards, kept = make_guard(model, params, [GUARD_TEXT, (1, 2, 3)], 16), start.clone()
    steps = [STEP, STEP[1:], STEP[:1], STEP]
    first, second = (finish(Consolidation(model, SLOW, start, steps, guards, FRAME), params) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(start, kept)
    assert not torch.equal(first, start)


def test_jobs_that_take_turns_do_not_see_each_other() -> None:
    """Two sessions' jobs computed step by step in turn end as each does alone."""
    model, params, start = bench()
    other = model.memory.initial["slow"][None]
    guards = make_guard(model, params, [GUARD_TEXT, (1, 2, 3)], 16)
    jobs = [
        Consolidation(model, SLOW, weights, steps, guards, FRAME)
        for weights, steps in ((start, [STEP] * 3), (other, [STEP[:1], STEP[1:]] * 2))
    ]
    while not all(job.is_done for job in jobs):
        for job in jobs:
            if not job.is_done:
                job.advance(params)
    alone = [
        finish(Consolidation(model, SLOW, weights, steps, guards, FRAME), params)
        for weights, steps in ((start, [STEP] * 3), (other, [STEP[:1], STEP[1:]] * 2))
    ]
    assert all(torch.equal(job.weights, expected) for job, expected in zip(jobs, alone, strict=True))


def test_a_job_lowers_the_loss_and_ends_in_bfloat16() -> None:
    """What was rehearsed is predicted better afterwards, and the result is stored without loss."""
    model, params, start = bench()
    job = Consolidation(model, SLOW, start, [STEP] * 30, [], FRAME)
    weights = finish(job, params)
    first, last = job.mean_losses()
    assert last < first / 2
    assert torch.equal(weights.bfloat16().double(), weights)
    assert (job.num_done, job.num_steps, len(job.losses), job.name) == (30, 30, 30, "slow")


def test_the_guard_holds_general_text_where_it_was() -> None:
    """With the guard, the same rehearsal moves the predictions on the guard's text less."""
    model, params, _ = bench()
    start = model.memory.initial["slow"][None]
    guards = make_guard(model, params, [GUARD_TEXT], 64)
    moved = []
    for used in ([], guards):
        weights = finish(Consolidation(model, SLOW, start, [STEP] * 15, used, FRAME), params)
        logits, _ = llama(merged(model, {"slow": weights[0]}), torch.tensor(GUARD_TEXT))
        moved.append(guard_loss(found(logits, guards[0]), guards[0]).item())
    assert 0 < moved[1] < moved[0] / 2


def test_a_job_stays_within_the_norm_cap() -> None:
    """Every step is pulled back to the cap; rounding to bfloat16 comes after it."""
    spec = replace(SLOW, lr=1.0, norm_cap=0.5)
    model, params, _ = bench(spec)
    initial = model.memory.initial["slow"][None]
    job = Consolidation(model, spec, initial, [STEP] * 3, [], FRAME)
    job.advance(params)
    assert float((job.weights - initial).norm()) == pytest.approx(0.5, rel=1e-12)
    # bfloat16 keeps eight bits of each weight, whatever its drift.
    assert float((finish(job, params) - initial).norm()) < 0.5 + float(initial.norm()) / 256


def test_a_value_that_is_not_finite_ends_the_job_at_its_start() -> None:
    """After good steps, one bad gradient gives the whole job up: it is done, with the weights it began with."""
    model, params, start = bench()
    good = make_guard(model, params, [GUARD_TEXT], 16)
    bad = replace(good[0], log_probs=torch.full_like(good[0].log_probs, torch.nan))
    job = Consolidation(model, SLOW, start, [STEP] * 4, [*good, bad], FRAME)
    job.advance(params)
    assert not torch.equal(job.weights, start)
    job.advance(params)
    assert (job.is_finite, job.is_done) == (False, True)
    assert torch.equal(job.weights, start)


def test_a_job_without_steps_is_done_and_changes_nothing() -> None:
    """Nothing to rehearse leaves the weights to the bit."""
    model, _, start = bench()
    job = Consolidation(model, SLOW, start, [], [], FRAME)
    assert job.is_done
    assert torch.equal(job.weights, start)
