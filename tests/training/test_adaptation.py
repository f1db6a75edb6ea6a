"""Meta-training of adapters on a toy: each of its losses against a plain Llama, its gradients, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_llama import llama
from toys import CONFIG, MODEL, make_params, make_tokenizer

from hope_server.engine.cards import Card, CardMaker
from hope_server.engine.speller import Speller
from hope_server.errors import SettingsError
from hope_server.model.adapter import Adapter, random_adapter
from hope_server.model.config import LevelSpec, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import KeyStatistics
from hope_server.model.params import random_weights
from hope_server.training import adapt
from hope_server.training.adaptation import Adaptation, AdaptOptions, Ground
from hope_server.training.lessons import Asked

OPTIONS = AdaptOptions(
    episodes=4, rank=2, facts=2, lessons=2, passes=1, updates=2, asked=2, earlier=1, never=2, texts=1, text_tokens=8
)
SPEC = LevelSpec("slow", (1, 2), "dense", update_period=16, rule="muon", lr=0.01, betas=(0.0, 0.0), is_whitened=True)
ASKED = [
    Asked(Card((31, 32, 33), (34, 35, 36, 257), sees_system=True), 2),
    Asked(Card((256, 40), (41, 257)), 0),
]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 on every processor, so that tolerances are those of float32."""
    monkeypatch.setenv("HOPE_HALF", "0")


def ground() -> Ground:
    """A toy network with one whitened level."""
    model = HopeModel(replace(CONFIG, levels=(SPEC,), window=WindowSpec(512, 2, "model")), torch.float32)
    tokenizer = make_tokenizer()
    cards = CardMaker(tokenizer.encode, tokenizer.decode, Speller(tokenizer).frame)
    whitening = {block: torch.eye(MODEL.intermediate_size) for block in SPEC.blocks}
    texts = tuple(tuple(range(start, start + 12)) for start in range(10, 100, 10))
    params = make_params(torch.float32)
    return Ground(model, params, SPEC, KeyStatistics(whitening, {}), cards, texts)


def adapter(scale: float = 0.0) -> Adapter:
    """A new adapter, or one that changes something."""
    generator = torch.Generator().manual_seed(5)
    drawn = random_adapter(make_params(torch.float32), "base", 2, 1)
    return replace(
        drawn,
        pairs={
            name: (up + scale * torch.randn(up.shape, generator=generator), down)
            for name, (up, down) in drawn.pairs.items()
        },
    )


def session_weights() -> torch.Tensor:
    """What a session might have learned, [1, P]."""
    generator = torch.Generator().manual_seed(6)
    return torch.randn(1, 2 * MODEL.hidden_size * MODEL.intermediate_size, generator=generator) / 20


@torch.no_grad()
def plain(changes: Adapter | None, weights: torch.Tensor | None, tokens: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities [T, V] of a plain Llama with the adapter and the session added to its weights."""
    named = random_weights(MODEL, 0, torch.float64)
    for name, (up, down) in changes.pairs.items() if changes else ():
        block, matrix = name.split(".")[1:]
        change, layer = (up.double() @ down.double()), f"layers.{block}."
        q, kv = MODEL.num_heads * MODEL.head_dim, MODEL.num_kv_heads * MODEL.head_dim
        parts = {"qkv": [("q", q), ("k", kv), ("v", kv)], "out": [("o", len(change))]}
        parts |= {"gate_up": [(key, len(change) // 2) for key in ("gate", "up")], "down": [("down", len(change))]}
        for part, (key, _) in zip(change.split([rows for _, rows in parts[matrix]]), parts[matrix], strict=True):
            named[f"{layer}{key}.weight"] = named[f"{layer}{key}.weight"] + part
    if weights is not None:
        deltas = weights.double().view(2, MODEL.hidden_size, MODEL.intermediate_size)
        for block, delta in zip(SPEC.blocks, deltas, strict=True):
            named[f"layers.{block}.down.weight"] = named[f"layers.{block}.down.weight"] + delta
    return llama(named, torch.tensor(tokens))[0].log_softmax(-1)


def replies(changes: Adapter | None, weights: torch.Tensor | None, system: tuple[int, ...]) -> list[torch.Tensor]:
    """The log-probabilities that predict each reply's tokens."""
    out = []
    for each in ASKED:
        prompt = (*system, *each.card.prompt) if each.card.sees_system else each.card.prompt
        out.append(plain(changes, weights, (*prompt, *each.card.reply))[len(prompt) - 1 : -1])
    return out


def test_what_was_told_is_a_plain_llamas_loss() -> None:
    """Values count whole, what stands before them by `lead`; each question is read alone."""
    made, weights = Adaptation(ground(), adapter(0.1), OPTIONS), session_weights()
    loss, value, count = made._told_loss(made.params(), ASKED, weights)
    found = replies(made.adapter, weights, made.ground.cards.system)
    losses = [
        -rows.gather(1, torch.tensor(each.card.reply)[:, None])[:, 0] for rows, each in zip(found, ASKED, strict=True)
    ]
    weighted = OPTIONS.lead * losses[0][:2].sum() + losses[0][2:].sum() + losses[1].sum()
    assert loss.item() == pytest.approx(weighted.item(), rel=1e-4)
    assert value.item() == pytest.approx((losses[0][2:].sum() + losses[1].sum()).item(), rel=1e-4)
    assert count == 4


def test_what_was_never_told_is_held_by_the_untouched_network() -> None:
    """The divergence of the values' predictions, endings left out; nothing without a session and an adapter."""
    made, weights = Adaptation(ground(), adapter(0.1), OPTIONS), session_weights()
    found, count = made._never_loss(made.params(), ASKED, weights)
    system = made.ground.cards.system
    after, before = replies(made.adapter, weights, system), replies(None, None, system)
    # The first reply's value is its third token, the second's its first; both end with 257.
    pairs = [(before[0][2], after[0][2]), (before[1][0], after[1][0])]
    expected = sum(_divergence(old, new) for old, new in pairs)
    assert count == 2
    assert found.item() == pytest.approx(expected, rel=1e-3)
    untouched = Adaptation(ground(), adapter(), OPTIONS)
    assert untouched._never_loss(untouched.params(), ASKED, untaught_weights())[0].item() == pytest.approx(0, abs=1e-5)


def test_general_text_is_held_without_the_session() -> None:
    """The mean divergence of every prediction; nothing for an adapter that changes nothing."""
    made, text = Adaptation(ground(), adapter(0.1), OPTIONS), (11, 12, 13, 14, 15)
    expected = [
        _divergence(*rows) for rows in zip(plain(None, None, text), plain(made.adapter, None, text), strict=True)
    ]
    assert made._general_loss(made.params(), text).item() == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    untouched = Adaptation(ground(), adapter(), OPTIONS)
    assert untouched._general_loss(untouched.params(), text).item() == pytest.approx(0, abs=1e-5)


def untaught_weights() -> torch.Tensor:
    """A session that learned nothing."""
    return torch.zeros_like(session_weights())


def _divergence(before: torch.Tensor, after: torch.Tensor, num_candidates: int = 64) -> float:
    """KL over the best candidates and the rest, from their definitions."""
    best = before.topk(num_candidates).indices
    rest = [1 - rows[best].exp().sum() for rows in (before, after)]
    kept = (before[best].exp() * (before[best] - after[best])).sum()
    return float(kept + rest[0] * (rest[0] / rest[1]).log())


def test_pairs_get_the_gradient_of_the_matrix_that_they_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brought from the matrices, it is what autograd finds through the products."""
    made = Adaptation(ground(), adapter(0.1), OPTIONS)
    monkeypatch.setattr(made._optimizer, "step", lambda: None)
    pulls = {name: torch.randn(up.shape[0], down.shape[1]) / 1e6 for name, (up, down) in made.adapter.pairs.items()}
    leaves = {name: torch.zeros_like(pull) for name, pull in pulls.items()}
    for name, leaf in leaves.items():
        leaf.grad = pulls[name]
    made._descend(leaves)
    total = sum((pulls[name] * (up @ down)).sum() for name, (up, down) in made.adapter.pairs.items())
    tensors = [tensor for pair in made.adapter.pairs.values() for tensor in pair]
    for tensor, expected in zip(tensors, torch.autograd.grad(total, tensors), strict=True):
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-5, atol=1e-12)


def test_episodes_change_the_adapter_alone_and_repeat() -> None:
    """The network stays to the bit; one seed gives one adapter, whether it is evaluated in between or not."""
    found = []
    for evaluates in (False, True):
        base = ground()
        before = base.params.digest()
        made = Adaptation(base, adapter(), OPTIONS)
        for _ in range(3):
            measured = made.episode()
            assert measured["loss"] > 0 and measured["gradient norm"] > 0
            if evaluates:
                assert made.evaluate() == made.evaluate()
        assert base.params.digest() == before
        found.append(made.adapter.digest)
    assert found[0] == found[1] != adapter().digest


def test_it_learns_to_answer() -> None:
    """On the toy, what studies leave unsaid is learned by the adapter: held-out answers become likelier."""
    made = Adaptation(ground(), adapter(), replace(OPTIONS, episodes=12, lr=1e-2, general_weight=0.0, never_weight=0.0))
    before = made.evaluate()["eval loss"]
    for _ in range(12):
        made.episode()
    assert made.evaluate()["eval loss"] < before - 0.2


@pytest.mark.parametrize("change", [{"episodes": 0}, {"lr": 0.0}, {"inner_lr": -1.0}, {"never_weight": -0.5}])
def test_numbers_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    """By name."""
    with pytest.raises(SettingsError, match=next(iter(change))):
        adapt.check(replace(AdaptOptions(), **change))


def test_an_unknown_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, and the exit status says so."""
    assert adapt.main(["no-such-model", "--out", str(tmp_path / "a")]) == 1
    assert "no-such-model" in capsys.readouterr().err
