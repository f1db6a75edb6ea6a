"""The parts of `hope bench learning` for one seed: each teaches fresh facts over HTTP and asks for them.

A part is a function of a Trial that returns values by name; those that need a taught session share the one that was
told in chat turns, and change copies of it only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from hope_client import MemoryOptions, Session

from hope_server.evaluation.learning_facts import TaughtFact, chat_turns, draw_facts, tell, updated
from hope_server.evaluation.learning_probe import (
    SessionKnower,
    choice_results,
    loss_change_percent,
    paraphrases,
    recall,
    text_losses,
    top_probabilities,
    wins,
)
from hope_server.evaluation.learning_room import Classroom, Values
from hope_server.evaluation.learning_texts import Choice, Window

__all__ = ["PARTS", "Sizes", "Trial", "told_facts"]

REPLY_TOKENS = 32
"""Longest reply of a turn that tells facts, in tokens: a conversation has replies, and they are learned too."""
TIMED_TOKENS = 8
"""Length of a reply whose turn is timed, in tokens: short, so that what is added to it shows."""
CHARS_PER_TOKEN = 4.0
NUM_LESSONS = 4
# Seeds of draws that must not be alike.
_NEVER, _UPDATE, _TURNS = 1_000_003, 2_000_003, 3_000_017


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run measures.

    facts: of the chat, which most measures are of. fewer: of the smallest tellings. many: of the long list. free: most
    free answers asked for in one measure. delays: tokens read before asking again. windows: of each held-out text.
    choices: items of each multiple-choice set. lesson: facts of a lesson. timed: turns whose cost is measured.
    """

    facts: int = 32
    fewer: int = 8
    many: int = 128
    free: int = 32
    delays: tuple[int, ...] = (2_048, 8_192, 32_768)
    windows: int = 4
    choices: int = 100
    lesson: int = 8
    timed: int = 3

    @classmethod
    def quick(cls, choices: int = 20) -> Sizes:
        """The small form, for tests and for a first look."""
        few = cls(facts=8, fewer=4, many=16, free=8, delays=(2_048, 8_192), windows=1, lesson=2, timed=1)
        return replace(few, choices=choices)


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed on one server.

    reading: what is read in between; windows, choices: what damage is measured on, the same for all seeds.
    """

    seed: int
    room: Classroom
    sizes: Sizes
    reading: str = ""
    windows: tuple[Window, ...] = ()
    choices: tuple[Choice, ...] = ()
    base: Callable[[str, Callable[[], Values]], Values] = lambda _, measure: measure()
    """Returns what is measured once for all seeds, under a name."""

    def chat(self) -> tuple[Session, Values]:
        """The session that was told the facts in chat turns, and what that gave."""
        return self.taught("chat", lambda session: teach_by_chat(session, told_facts(self), self.seed))

    def taught(self, name: str, teach: Callable[[Session], Values]) -> tuple[Session, Values]:
        """The session of that name of this seed."""
        return self.room.taught(f"{self.seed}-{name}", teach)


def told_facts(trial: Trial) -> tuple[TaughtFact, ...]:
    """Return the facts of the chat."""
    return draw_facts(trial.sizes.facts, trial.seed)


def teach_by_chat(session: Session, facts: Sequence[TaughtFact], seed: int) -> Values:
    """Tell facts in chat turns among small talk, then let the session consolidate."""
    began = time.monotonic()
    for turn in chat_turns(facts, seed):
        session.chat(turn, temperature=0, max_tokens=REPLY_TOKENS)
    talked = time.monotonic() - began
    session.consolidate()
    return {"turns_seconds": talked, "seconds": time.monotonic() - began}


def teach_by_text(session: Session, text: str, passes: int | None = None) -> Values:
    """Have a text learned, and what of it waits consolidated."""
    began = time.monotonic()
    result = session.learn(text, passes)
    session.consolidate(passes)
    seconds = time.monotonic() - began
    return {"tokens": float(result.tokens_learned), "seconds": seconds, "rate": result.tokens_learned / seconds}


# -- the parts ---


def measure_recall(trial: Trial) -> Values:
    """(a) The facts told in chat turns, and what the session weighs."""
    session, gave = trial.chat()
    info = session.info()
    known = recall(told_facts(trial), SessionKnower(session), trial.sizes.free)
    sizes = {"state_bytes": float(info.memory_bytes), "snapshot_bytes": float(info.snapshot_bytes)}
    return {**known.values(), **sizes, "teach_seconds": gave["seconds"]}


def measure_tellings(trial: Trial) -> Values:
    """(a) Few facts and as many as in the chat, told in a list and in prose by `learn`; few also in a chat."""
    out: Values = {}
    for count in dict.fromkeys((trial.sizes.fewer, trial.sizes.facts)):
        facts = draw_facts(count, trial.seed)
        for how in ("list", "prose"):
            text = "\n\n".join(tell(facts, "list" if how == "list" else "prose", trial.seed))
            out |= _told(trial, f"{how}_{count}", facts, partial(teach_by_text, text=text))
        if count != trial.sizes.facts:
            out |= _told(trial, f"chat_{count}", facts, partial(teach_by_chat, facts=facts, seed=trial.seed))
    return out


def measure_many(trial: Trial) -> Values:
    """(a) Many facts, told in a list by `learn`."""
    facts = draw_facts(trial.sizes.many, trial.seed)
    text = tell(facts, "list", trial.seed)[0]
    return _told(trial, "many", facts, lambda each: teach_by_text(each, text), prefix="")


def _told(
    trial: Trial,
    name: str,
    facts: Sequence[TaughtFact],
    teach: Callable[[Session], Values],
    prefix: str | None = None,
) -> Values:
    """Teach a session, ask it, forget it."""
    start = f"{name}_" if prefix is None else prefix
    session, gave = trial.taught(name, teach)
    values = recall(facts, SessionKnower(session), trial.sizes.free).values(start)
    trial.room.forget(f"{trial.seed}-{name}")
    return {**values, f"{start}seconds": gave["seconds"], f"{start}tokens_per_second": gave.get("rate", math.nan)}


def measure_paraphrase(trial: Trial) -> Values:
    """(b) The same session, asked in other words."""
    session, _ = trial.chat()
    return paraphrases(told_facts(trial), SessionKnower(session), trial.sizes.free).values()


def measure_delay(trial: Trial) -> Values:
    """(c) The same facts again after unrelated reading; `kept` is the share of rank accuracy that is left."""
    session, _ = trial.chat()
    facts, text = told_facts(trial), trial.reading
    # Another place of the book for each seed.
    place = trial.seed * 7_919 % max(1, len(text) // 2)
    out: Values = {"before": wins(facts, SessionKnower(session))}
    num_read = 0
    with trial.room.copy(session, f"{trial.seed}-delay") as copy:
        for delay in trial.sizes.delays:
            while num_read < delay:
                piece = text[place : place + max(200, int(CHARS_PER_TOKEN * (delay - num_read)))]
                if not piece.strip():
                    raise ValueError(f"the text has too few tokens for a delay of {delay:,}")
                place += len(piece)
                num_read += copy.learn(piece, passes=1).tokens_learned
            after = wins(facts, SessionKnower(copy))
            out |= {f"after_{delay}": after, f"kept_{delay}": after / out["before"] if out["before"] else math.nan}
    return {**out, "tokens_read": float(num_read)}


def measure_update(trial: Trial) -> Values:
    """(d) A quarter of the facts told again with another value, in chat turns; the old value is a candidate."""
    session, _ = trial.chat()
    facts = told_facts(trial)
    changed = updated(facts[: max(2, len(facts) // 4)], trial.seed + _UPDATE)
    with trial.room.copy(session, f"{trial.seed}-update") as copy:
        teach_by_chat(copy, changed, trial.seed + _UPDATE)
        return {
            "updated": wins(changed, SessionKnower(copy)),
            "others": wins(facts[len(changed) :], SessionKnower(copy)),
        }


def measure_lessons(trial: Trial) -> Values:
    """Four lessons in sequence by `learn`; the first one is asked for at its end and at the end of all."""
    size = trial.sizes.lesson
    facts = draw_facts(NUM_LESSONS * size, trial.seed)

    def teach(session: Session) -> Values:
        out: Values = {}
        for number in range(NUM_LESSONS):
            lesson = facts[number * size : (number + 1) * size]
            teach_by_text(session, tell(lesson, "list", trial.seed)[0])
            if number == 0:
                out["first_then"] = wins(lesson, SessionKnower(session))
        return out

    session, gave = trial.taught("lessons", teach)
    out = {**gave, "first": wins(facts[:size], SessionKnower(session)), "all": wins(facts, SessionKnower(session))}
    trial.room.forget(f"{trial.seed}-lessons")
    return out


def measure_damage(trial: Trial) -> Values:
    """(e) By how many percent the loss on held-out texts rose, mean and each."""
    if not trial.windows:
        return {"mean": math.nan}
    session, _ = trial.chat()
    before = trial.base("losses", lambda: _as_values(text_losses(trial.windows, trial.room.untaught())))
    after = _as_values(text_losses(trial.windows, session))
    change = loss_change_percent(_as_losses(before), _as_losses(after))
    return {"mean": statistics.fmean(change.values()), **change}


def measure_choices(trial: Trial) -> Values:
    """(e) By how many points the accuracy on multiple-choice sets changed, mean of the sets and each."""
    if not trial.choices:
        return {"mean": math.nan}
    session, _ = trial.chat()
    before = trial.base("choices", lambda: _accuracies(trial, trial.room.untaught()))
    after = _accuracies(trial, session)
    change = {name: 100 * (after[name] - before[name]) for name in before}
    accuracies = {f"{name}_before": 100 * value for name, value in before.items()}
    return {"mean": statistics.fmean(change.values()), **change, **accuracies}


def measure_false_memory(trial: Trial) -> Values:
    """(f) By how much facts that were never taught seem more certain than to an untaught session, of 1."""
    session, _ = trial.chat()
    facts = told_facts(trial)
    never = draw_facts(max(4, len(facts) // 2), trial.seed + _NEVER, exclude=facts)
    before = top_probabilities(never, SessionKnower(trial.room.untaught()))
    after = top_probabilities(never, SessionKnower(session))
    rises = [taught - untaught for taught, untaught in zip(after, before, strict=True)]
    return {"rise": statistics.fmean(rises), "before": statistics.fmean(before), "after": statistics.fmean(after)}


def measure_cost(trial: Trial) -> Values:
    """(g) What a turn of about 60 words costs after its reply and before it, and a text that is learned in one pass."""
    session, _ = trial.chat()
    facts = told_facts(trial)
    more = draw_facts(4 * trial.sizes.timed, trial.seed + _TURNS, exclude=facts)
    learning, added = [], []
    with trial.room.copy(session, f"{trial.seed}-cost") as copy:
        for number in range(trial.sizes.timed):
            turn = chat_turns(more[4 * number : 4 * number + 4], trial.seed + number)[0]
            stateless = _turn_seconds(copy, turn, {"mode": "off"})
            inside = _turn_seconds(copy, turn, {"mode": "write"})
            learning.append(_seconds(copy.consolidate))
            added.append(inside - stateless)
    out = {"learn_seconds_per_turn": statistics.median(learning), "added_latency_seconds": statistics.median(added)}
    text = tell(facts, "list", trial.seed)[0]
    once = _told(trial, "once", facts, lambda each: teach_by_text(each, text, 1))
    return {**out, "one_pass_tokens_per_second": once["once_tokens_per_second"], "one_pass": once["once_rank_accuracy"]}


def _turn_seconds(session: Session, turn: str, memory: MemoryOptions) -> float:
    return _seconds(lambda: session.chat(turn, temperature=0, max_tokens=TIMED_TOKENS, memory=memory))


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _accuracies(trial: Trial, session: Session) -> Values:
    found = choice_results(trial.choices, session)
    return {name: sum(right) / len(right) for name, right in found.items()}


def _as_values(losses: Sequence[tuple[str, float, int]]) -> Values:
    """Sums by text, so that they can be kept as plain numbers."""
    out: Values = {}
    for name, logprob, count in losses:
        out[f"{name} logprob"] = out.get(f"{name} logprob", 0.0) + logprob
        out[f"{name} tokens"] = out.get(f"{name} tokens", 0.0) + count
    return out


def _as_losses(values: Values) -> list[tuple[str, float, int]]:
    names = [name.removesuffix(" logprob") for name in values if name.endswith(" logprob")]
    return [(name, values[f"{name} logprob"], int(values[f"{name} tokens"])) for name in names]


PARTS: dict[str, Callable[[Trial], Values]] = {
    "recall": measure_recall,
    "paraphrase": measure_paraphrase,
    "false_memory": measure_false_memory,
    "update": measure_update,
    "cost": measure_cost,
    "damage": measure_damage,
    "choices": measure_choices,
    "delay": measure_delay,
    "lessons": measure_lessons,
    "many": measure_many,
    "tellings": measure_tellings,
}
"""The parts by name, in the order in which they run."""
