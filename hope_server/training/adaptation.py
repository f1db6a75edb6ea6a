"""Meta-training of an adapter: what its steps follow.

In every episode the level studies invented facts as the server does; then the adapter, not the level, follows the
gradient of what the session should answer: facts that it was told, in other words; about others what the untouched
network answers; and general text, without the session, as before. The study counts as a constant (first-order MAML).
Shapes: T tokens of some cards in a row, D model width, P weights of the level.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from hope_kernels.products import factor_dtype, half_products

from hope_server.engine.cards import CardMaker
from hope_server.engine.consolidation import guard_loss, guard_of
from hope_server.engine.rehearsal import Piece, Tokens
from hope_server.engine.study import Study, cut, lay_out
from hope_server.model.adapter import Adapter
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import KeyStatistics
from hope_server.model.levels import BlockMemory
from hope_server.model.params import Params
from hope_server.training.dialogue_facts import Fact, load_language
from hope_server.training.lessons import Asked, LessonBook
from hope_server.training.optimizers import OptimizerSpec, build_optimizer, clip_gradients, lr_at, set_lr

__all__ = ["AdaptOptions", "Adaptation", "Ground"]

_EVERY_TEXT = 20
"""Of the general texts, one in so many is evaluated."""


@dataclass(frozen=True, slots=True)
class AdaptOptions:
    """How an adapter is trained.

    facts: of a lesson; lessons: of a session, after which another begins; passes, inner_lr: of its studies. updates:
    steps of the adapter behind each lesson. asked, earlier, never: facts that a step asks for: of the lesson, of those
    before it, and of those that were not told. texts, text_tokens: general text of a step. lead: weight of what a reply
    says before the value; never_weight, general_weight: of the two KL terms, in nats per token.
    """

    episodes: int = 120
    seed: int = 0
    rank: int = 8
    lr: float = 4e-4
    facts: int = 8
    lessons: int = 4
    passes: int = 4
    inner_lr: float = 0.03
    updates: int = 4
    asked: int = 8
    earlier: int = 4
    never: int = 6
    texts: int = 3
    text_tokens: int = 80
    lead: float = 0.3
    never_weight: float = 0.5
    general_weight: float = 12.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What meta-training stands on: the network as it is, its level, keys, words and general texts."""

    model: HopeModel
    params: Params
    spec: LevelSpec
    statistics: KeyStatistics
    cards: CardMaker
    texts: tuple[Tokens, ...]

    def no_memory(self) -> list[list[BlockMemory]]:
        """Of a session that has seen nothing."""
        return [[] for _ in self.params.blocks]


class Pupil:
    """One session. facts: what it was told, newest last; lessons: held so far; weights: the level's, [1, P]."""

    def __init__(self, ground: Ground, book: LessonBook, options: AdaptOptions) -> None:
        self._ground, self._book, self._options = ground, book, options
        self.facts: list[Fact] = []
        self.lessons = 0
        self.weights = ground.model.memory.initial[ground.spec.name].clone()[None]
        self._pieces: list[Piece] = []

    def study(self, params: Params, seed: int) -> list[Fact]:
        """Hold a lesson: draw facts, study them beside the earlier ones; returns the new ones."""
        ground = self._ground
        facts = self._book.draw(self._options.facts, self.facts)
        told = [tuple(ground.cards.encode(self._book.tell(fact))) for fact in facts]
        new = [Piece(tokens, self._options.passes, 0, "text") for tokens in told]
        plan = ground.cards.plan(new, self._pieces, seed)
        job = Study(ground.model, ground.spec, self.weights, plan, ground.statistics, ground.cards.system)
        while not job.is_done:
            job.advance(params)
        self.weights = job.weights
        self._pieces += new
        self.facts += facts
        self.lessons += 1
        return facts


class Adaptation:
    """An adapter on its way."""

    def __init__(self, ground: Ground, adapter: Adapter, options: AdaptOptions) -> None:
        self.ground, self.options = ground, options
        self.adapter = replace(adapter, pairs={name: _leaves(pair) for name, pair in adapter.pairs.items()})
        self._named = {f"{name}.{side}": t for name, pair in self.adapter.pairs.items() for side, t in enumerate(pair)}
        updates = options.episodes * options.updates
        self._outer = OptimizerSpec(lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0, warmup=min(20, updates))
        self._optimizer = build_optimizer(self._outer, self._named)
        self._num_updates, self._updates = 0, updates
        self._dtype = factor_dtype(torch.float32)
        self._base = ground.params.rounded(self._dtype)
        self._rng = random.Random(options.seed)
        self._book = LessonBook(load_language(), ground.cards, self._rng)
        self._pupil = Pupil(ground, self._book, options)

    def params(self) -> Params:
        """The network with the adapter as it is now."""
        with torch.no_grad():
            return self.adapter.merged(self.ground.params)

    def episode(self) -> dict[str, float]:
        """A lesson and the steps of the adapter behind it; returns the mean of what they measured, nats per token."""
        if self._pupil.lessons == self.options.lessons:
            self._pupil = Pupil(self.ground, self._book, self.options)
        facts = self._pupil.study(self.params(), self._rng.randrange(2**31))
        found = [self._update(facts) for _ in range(self.options.updates)]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    def evaluate(self) -> dict[str, float]:
        """Two lessons of held-out facts, asked for in held-out words, always the same ones."""
        rng = random.Random(2**31)
        book = LessonBook(load_language(), self.ground.cards, rng, is_held_out=True)
        pupil, params = Pupil(self.ground, book, self.options), self.params()
        for _ in range(2):
            pupil.study(params, rng.randrange(2**31))
        asked = [book.ask(fact) for fact in pupil.facts]
        never = [book.ask(fact) for fact in book.draw(self.options.facts, pupil.facts)]
        rounded = params.rounded(self._dtype)
        with torch.no_grad(), half_products(torch.float32):
            told = [self._told_loss(rounded, part, pupil.weights) for part in _cut(asked)]
            others = [self._never_loss(rounded, part, pupil.weights) for part in _cut(never)]
            general = [self._general_loss(rounded, text) for text in self.ground.texts[::_EVERY_TEXT]]
        return {
            "eval loss": sum(float(value) for _, value, _ in told) / sum(count for _, _, count in told),
            "eval never": sum(float(value) for value, _ in others) / sum(count for _, count in others),
            "eval general": sum(float(each) for each in general) / len(general),
        }

    def _update(self, facts: list[Fact]) -> dict[str, float]:
        """One step of the adapter."""
        options, pupil = self.options, self._pupil
        earlier = pupil.facts[: -len(facts)]
        told = self._rng.sample(facts, min(options.asked, len(facts)))
        told += self._rng.sample(earlier, min(options.earlier, len(earlier)))
        asked = [self._book.ask(fact) for fact in told]
        never = [self._book.ask(fact) for fact in self._book.draw(options.never, pupil.facts)]
        leaves = {name: tensor.detach() for name, tensor in self.params().rounded(self._dtype).named().items()}
        for name in self.adapter.pairs:
            leaves[name].requires_grad_()
        params = self._base.replaced(leaves)
        num_tokens = sum(len(each.card.reply) for each in asked)
        num_values = sum(len(each.card.reply) - each.value for each in asked)
        measured = {"loss": 0.0, "never": 0.0, "general": 0.0}
        with half_products(torch.float32):
            for part in _cut(asked):
                loss, value, _ = self._told_loss(params, part, pupil.weights)
                (loss / num_tokens).backward()
                measured["loss"] += float(value) / num_values
            for part in _cut(never):
                apart, count = self._never_loss(params, part, pupil.weights)
                (options.never_weight * len(part) / len(never) * apart / count).backward()
                measured["never"] += float(apart.detach()) / count * len(part) / len(never)
            for text in self._rng.sample(self.ground.texts, options.texts):
                moved = self._general_loss(params, text)
                (options.general_weight * moved / options.texts).backward()
                measured["general"] += float(moved.detach()) / options.texts
        return measured | self._descend(leaves)

    def _descend(self, leaves: dict[str, torch.Tensor]) -> dict[str, float]:
        """Bring the gradients of the matrices to the adapter's pairs and take a step."""
        for name, (up, down) in self.adapter.pairs.items():
            gradient = leaves[name].grad
            assert gradient is not None, "every matrix is used"
            up.grad, down.grad = gradient.to(up) @ down.detach().T, up.detach().T @ gradient.to(up)
        norm = clip_gradients(self._named, self._outer.clip)
        set_lr(self._optimizer, lr_at(self._outer, self._num_updates, self._updates))
        self._optimizer.step()
        self._num_updates += 1
        return {"gradient norm": norm}

    def _told_loss(
        self, params: Params, asked: list[Asked], weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Sum of the weighted losses of replies; that of their values alone, unweighted; the number of its tokens."""
        tokens, places, hidden = self._read(params, asked, weights)
        found, _ = self.ground.model.log_probs_at(params, hidden[places], tokens[places + 1, None])
        is_value = torch.tensor([n >= each.value for each in asked for n in range(len(each.card.reply))])
        losses = -found[:, 0]
        value = losses.detach()[is_value].sum()
        return (losses * torch.where(is_value, 1.0, self.options.lead)).sum(), value, int(is_value.sum())

    def _never_loss(self, params: Params, asked: list[Asked], weights: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Sum of the KL divergences, nats, from the untouched network's predictions of values, and their number."""
        ground = self.ground
        ending = len(ground.cards.frame.ending)
        tokens, places, hidden = self._read(params, asked, weights)
        kept = [each.value <= n < len(each.card.reply) - ending for each in asked for n in range(len(each.card.reply))]
        places = places[torch.tensor(kept)]
        with torch.no_grad():
            before = self._read(self._base, asked, None)[2][places]
            guard = guard_of(tokens[places], ground.model.logits(ground.params, before.float()))
        found, _ = ground.model.log_probs_at(params, hidden[places], guard.candidates)
        return guard_loss(found, guard) * len(places), len(places)

    def _general_loss(self, params: Params, text: Tokens) -> torch.Tensor:
        """Mean KL divergence, nats per token, from the untouched network's predictions of a text, without a session."""
        ground, tokens = self.ground, torch.tensor(text)
        past = ground.model.empty_past(1, torch.float32)
        sight = ground.model.sight(past.window, len(text))
        blocks = range(len(params.blocks))

        def read(network: Params) -> torch.Tensor:
            hidden = network.embed[tokens][None]
            return ground.model.run_blocks(network, hidden, past, ground.no_memory(), sight, blocks)[0][0]

        with torch.no_grad():
            guard = guard_of(tokens, ground.model.logits(ground.params, read(self._base).float()))
        return guard_loss(ground.model.log_probs_at(params, read(params), guard.candidates)[0], guard)

    def _read(
        self, params: Params, asked: list[Asked], weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [T], places that predict replies, and last hidden states [T, D]; weights: None without a session."""
        model, spec = self.ground.model, self.ground.spec
        laid = lay_out(tuple(each.card for each in asked), self.ground.cards.system)
        past = model.empty_past(1, torch.float32)
        sight = model.branch_sight(past.window, laid.segments, laid.sees_first)
        memories = self.ground.no_memory()
        if weights is not None:
            memories = model.initial_memories({spec.name: model.memory.layouts[spec.name].views(weights)})
        hidden = params.embed[laid.tokens][None]
        hidden, _ = model.run_blocks(params, hidden, past, memories, sight, range(len(params.blocks)))
        return laid.tokens, laid.learned, hidden[0]


def _leaves(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    up, down = (tensor.detach().clone().requires_grad_() for tensor in pair)
    return up, down


def _cut(asked: list[Asked]) -> list[list[Asked]]:
    """In parts as a study computes them."""
    by_card = {id(each.card): each for each in asked}
    return [[by_card[id(card)] for card in part] for part in cut(tuple(each.card for each in asked))]
