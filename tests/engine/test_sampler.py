"""Sampling: the right distribution, the same tokens for the same seed, and no token from a failed model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hope_server.engine.sampler import Sampler
from hope_server.engine.turn import SamplingParams
from hope_server.errors import InternalError

NUM_DRAWS = 4000


def draw(params: SamplingParams, logits: torch.Tensor, num_draws: int = NUM_DRAWS) -> torch.Tensor:
    """How often each token was drawn from the same logits."""
    sampler = Sampler(params)
    ids = torch.tensor([sampler.sample(logits) for _ in range(num_draws)])
    return torch.bincount(ids, minlength=logits.numel())


def assert_drawn_from(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Pearson's test of counts against probabilities; impossible tokens must not occur at all."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double() * counts.sum()
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = max(int(possible.sum()) - 1, 1)
    # Chi-square has mean `freedom` and variance twice that: five standard deviations, with room for few degrees.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities after top_p by sorting everything."""
    probabilities, order = logits.double().softmax(0).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    kept = torch.where(before < top_p, probabilities, 0.0)
    return torch.zeros_like(kept).scatter(0, order, kept / kept.sum())


@pytest.fixture
def logits() -> torch.Tensor:
    """Twelve logits, all different."""
    return torch.randn(12) * 2


def test_greedy_takes_the_largest(logits):
    """Temperature 0, next to 0, and top_k 1 take the largest logit."""
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(temperature=1e-300, seed=1),
        SamplingParams(temperature=5.0, top_k=1, seed=1),
        SamplingParams(temperature=5.0, top_p=0.0, seed=1),
    ):
        assert Sampler(params).sample(logits) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_temperature(logits, temperature):
    """Tokens are drawn with the probabilities of the softmax at the temperature."""
    counts = draw(SamplingParams(temperature=temperature, seed=7), logits)
    assert_drawn_from(counts, (logits / temperature).softmax(0))


def test_top_k_keeps_the_largest(logits):
    """Only the k largest are drawn, in their proportions; a k beyond the vocabulary is no limit."""
    counts = draw(SamplingParams(temperature=1.0, top_k=3, seed=7), logits)
    values, ids = logits.topk(3)
    assert_drawn_from(counts, torch.zeros(12).scatter(0, ids, values.softmax(0)))
    assert_drawn_from(draw(SamplingParams(temperature=1.0, top_k=500, seed=7), logits), logits.softmax(0))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_nucleus(logits, top_p):
    """The fewest tokens whose probabilities reach top_p are drawn, in their proportions."""
    assert_drawn_from(draw(SamplingParams(temperature=1.0, top_p=top_p, seed=7), logits), nucleus(logits, top_p))


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95])
def test_top_p_of_a_wide_nucleus(top_p):
    """A nucleus too wide to be sorted is drawn from like a narrow one."""
    logits = torch.randn(2000) * 0.5
    counts = draw(SamplingParams(temperature=1.0, top_p=top_p, seed=7), logits)
    expected = nucleus(logits, top_p)
    assert counts[expected == 0].sum() == 0
    # Grouped by rank, so that every group is expected often enough for the test to hold.
    order = expected.argsort(descending=True)[: int((expected > 0).sum())]
    groups = [group for group in order.chunk(20) if len(group)]
    grouped = torch.stack([counts[group].sum() for group in groups])
    assert_drawn_from(grouped, torch.stack([expected[group].sum() for group in groups]))


def test_top_p_counts_what_top_k_left(logits):
    """With both limits, top_p is a share of the probability that top_k left."""
    values, ids = logits.topk(5)
    expected = torch.zeros(12, dtype=torch.float64).scatter(0, ids, nucleus(values, 0.8))
    assert_drawn_from(draw(SamplingParams(temperature=1.0, top_k=5, top_p=0.8, seed=7), logits), expected)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 5}, {"top_p": 0.5, "repetition_penalty": 1.3}])
def test_same_seed_draws_the_same(params):
    """One seed draws the same tokens in every turn, another seed others; the RNG of the process plays no part."""
    logits = torch.randn(1000)
    runs = []
    for seed in (3, 3, 4):
        sampler = Sampler(SamplingParams(seed=seed, **params))
        torch.rand(5)
        runs.append([sampler.sample(logits) for _ in range(20)])
    assert runs[0] == runs[1] != runs[2]


def test_without_a_seed_turns_differ():
    """Turns without a seed draw different tokens, although the process is seeded."""
    logits = torch.zeros(10_000)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        sampler = Sampler(SamplingParams())
        runs.append([sampler.sample(logits) for _ in range(5)])
    assert runs[0] != runs[1]


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**80])
def test_any_integer_is_a_seed(seed, logits):
    """Seeds of any size and sign are taken."""
    assert 0 <= Sampler(SamplingParams(seed=seed)).sample(logits) < 12


def test_sampling_leaves_the_logits_alone(logits):
    """Neither drawing nor penalties change the caller's logits."""
    before = logits.clone()
    sampler = Sampler(SamplingParams(presence_penalty=1, frequency_penalty=1, repetition_penalty=2, top_p=0.5, seed=1))
    for _ in range(3):
        sampler.observe(sampler.sample(logits))
    assert torch.equal(logits, before)


def greedy_after(seen: list[int], logits: list[float], prompt: tuple[int, ...] = (), **penalties: float) -> int:
    sampler = Sampler(SamplingParams(temperature=0, **penalties))
    sampler.observe_prompt(prompt)
    for token in seen:
        sampler.observe(token)
    return sampler.sample(torch.tensor(logits))


def test_presence_and_frequency_penalties():
    """Presence is taken off once per token of the reply, frequency once per occurrence, and neither for the prompt."""
    logits = [3.0, 2.0, 1.9]
    assert greedy_after([0, 0], logits, presence_penalty=0.9) == 0
    assert greedy_after([0, 0], logits, presence_penalty=1.1) == 1
    assert greedy_after([0], logits, frequency_penalty=0.6) == 0
    assert greedy_after([0, 0], logits, frequency_penalty=0.6) == 1
    assert greedy_after([0, 1], logits, presence_penalty=1.5) == 2
    assert greedy_after([], logits, (0, 0), presence_penalty=2.0, frequency_penalty=2.0) == 0


def test_repetition_penalty():
    """Repetition lowers logits of either sign for what the reply or the prompt has, once however often it was seen."""
    assert greedy_after([0, 0], [3.0, 2.0], repetition_penalty=1.4) == 0
    assert greedy_after([0], [3.0, 2.0], repetition_penalty=1.6) == 1
    assert greedy_after([], [3.0, 2.0], (0,), repetition_penalty=1.6) == 1
    assert greedy_after([0], [-1.0, -1.5], repetition_penalty=1.6) == 1


def test_penalties_follow_the_reply():
    """Tokens noted between draws count at the next draw."""
    sampler = Sampler(SamplingParams(temperature=0, frequency_penalty=1.0))
    drawn = []
    for _ in range(6):
        drawn.append(sampler.sample(torch.tensor([1.0, 0.5, 0.25])))
        sampler.observe(drawn[-1])
    assert drawn == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 2}, {"repetition_penalty": 1.2}])
def test_a_failed_model_gives_no_token(bad, params, logits):
    """One NaN or infinite logit ends the turn with an internal error, whatever the parameters."""
    logits[3] = bad
    with pytest.raises(InternalError, match="where a logit belongs"):
        Sampler(SamplingParams(**params)).sample(logits)


def test_no_choice_left_is_a_failure():
    """Logits that rule out every token give none."""
    with pytest.raises(InternalError):
        Sampler(SamplingParams()).sample(torch.full((5,), -math.inf))


@given(
    st.lists(st.sampled_from([-math.inf, -1e30, -100.0, 0.0, 1.0, 80.0, 1e30]), min_size=1, max_size=20),
    st.floats(1e-6, 10),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(0, 25),
)
def test_ruled_out_tokens_are_never_drawn(values, temperature, top_p, top_k):
    """A logit of minus infinity is never drawn, also beside huge ones; the first drawn is always a possible token."""
    logits = torch.tensor(values)
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=0))
    if not math.isfinite(max(values)):
        with pytest.raises(InternalError):
            sampler.sample(logits)
        return
    for _ in range(5):
        assert math.isfinite(values[sampler.sample(logits)])


def test_a_bias_is_added_to_its_logits():
    """A token can be favoured or ruled out; the others keep their proportions."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    params = SamplingParams(temperature=1.0, seed=7, logit_bias=((1, -100.0), (3, 1.5), (3, 0.5)))
    biased = logits + torch.tensor([0.0, -100.0, 0.0, 2.0])
    # What is left of a hundred nats is less than can be counted.
    expected = biased.softmax(0) * (biased > -50)
    assert_drawn_from(draw(params, logits), expected / expected.sum())
    assert Sampler(SamplingParams(temperature=0, logit_bias=((2, 2.5),))).sample(logits) == 2


def test_a_bias_comes_after_the_penalties(logits):
    """A repetition penalty does not scale what was added."""
    params = SamplingParams(temperature=0, repetition_penalty=2.0, logit_bias=((1, 1.2),))
    sampler = Sampler(params)
    sampler.observe(0)
    sampler.observe(1)
    assert sampler.sample(torch.tensor([4.0, 2.0, 0.0])) == 1


@pytest.mark.parametrize("params", [{"logit_bias": ((1, 5.0),)}, {"logit_bias": ((1, 5.0),), "top_p": 0.5}])
def test_a_bias_leaves_the_logits_alone(params, logits):
    """The caller's logits stay as they are, so that log-probabilities are the model's own."""
    before = logits.clone()
    Sampler(SamplingParams(seed=1, **params)).sample(logits)
    assert torch.equal(logits, before)


class Allows:
    """A constraint that allows some tokens, and notes what it is told."""

    def __init__(self, *allowed):
        self.allowed = torch.tensor(allowed)
        self.accepted = []

    def mask(self, logits):
        """All others are ruled out."""
        return torch.full_like(logits, -math.inf).index_copy(0, self.allowed, logits[self.allowed])

    def accept(self, token):
        """Note the token."""
        self.accepted.append(token)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 2}, {"logit_bias": ((0, 100.0),)}])
def test_only_what_the_constraint_allows_is_drawn(params, logits):
    """Whatever the parameters, in the proportions that are left, also against a bias."""
    constraint = Allows(3, 5, 7)
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1, **params), constraint)
    drawn = [sampler.sample(logits) for _ in range(200)]
    assert set(drawn) <= {3, 5, 7}
    sampler.observe(drawn[0])
    assert constraint.accepted == [drawn[0]]
