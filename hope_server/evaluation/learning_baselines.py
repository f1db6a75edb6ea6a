"""What `hope bench learning` compares with: the same facts, told to or looked up by something else.

Each is the same model. Those in the prompt are asked with a window that holds everything they are told, so that none
fails for want of room; the online pass is a server of ours with one level and the plainest rule.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hope_server.errors import StartupError
from hope_server.evaluation.learning_facts import TaughtFact, chat_turns, draw_facts, tell
from hope_server.evaluation.learning_probe import (
    Knower,
    SessionKnower,
    loss_change_percent,
    paraphrases,
    recall,
    text_losses,
)
from hope_server.evaluation.learning_room import Classroom, Say, Values
from hope_server.evaluation.learning_texts import held_out_windows

if TYPE_CHECKING:
    from hope_server.evaluation.learning_bench import LearningOptions

__all__ = ["BASELINES", "SGD_LEVEL", "Rooms", "Unavailable", "judged", "run_baseline"]

_PLAIN = {"HOPE_WINDOW": "4096"}
_NUM_RETRIEVED = 4
SGD_LEVEL = {
    "name": "online",
    "blocks": list(range(8, 20)),
    "kind": "dense",
    "schedule": "online",
    "update_period": 64,
    "rule": "sgd",
    "lr": 0.3,
    "norm_cap": 60.0,
    "max_update_norm": 1.0,
}
"""The level of plain test-time SGD: full deltas of the down projections of the middle blocks."""


class Unavailable(Exception):
    """A baseline that cannot be run here; the message says why."""


@dataclass(slots=True)
class Rooms:
    """Servers for baselines, one at a time: the next one ends the last one."""

    options: LearningOptions
    folder: Path
    say: Say
    _open: dict[str, Classroom] = field(default_factory=dict)

    def plain(self) -> Classroom:
        """The model with a window for everything it is told; its sessions are never taught."""
        return self._room("plain", _PLAIN)

    def sgd(self) -> Classroom:
        """A server whose sessions have one online level, written by plain SGD."""
        path = self.folder / "sgd.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([SGD_LEVEL]), encoding="utf-8")
        return self._room("sgd", {"HOPE_LEVELS": str(path)})

    def close(self) -> None:
        """End the server that runs, and delete its store."""
        for room in self._open.values():
            room.remove()
        self._open.clear()

    def _room(self, name: str, settings: dict[str, str]) -> Classroom:
        if name not in self._open:
            self.close()
            self._open[name] = Classroom(self.folder / name, self.say, settings=settings)
        return self._open[name]


def judged(facts: Sequence[TaughtFact], knower: Knower, num_free: int) -> Values:
    """Return recall and paraphrase by the names of the table."""
    values = recall(facts, knower, num_free).values()
    return {**values, "paraphrase": paraphrases(facts, knower, 0).rank_accuracy}


def _facts(seed: int, options: LearningOptions) -> tuple[TaughtFact, ...]:
    """The facts that the chat tells."""
    return draw_facts(options.sizes.facts, seed)


def no_memory(seed: int, rooms: Rooms) -> Values:
    """The model as it is."""
    knower = SessionKnower(rooms.plain().untaught())
    return {**judged(_facts(seed, rooms.options), knower, rooms.options.sizes.free), "state_bytes": 0.0}


def in_prompt(seed: int, rooms: Rooms) -> Values:
    """Everything that was said in the chat, in the prompt of each question."""
    facts = _facts(seed, rooms.options)
    told = "\n".join(chat_turns(facts, seed))
    knower = SessionKnower(rooms.plain().untaught(), lambda _: told)
    return {**judged(facts, knower, rooms.options.sizes.free), "state_bytes": float(len(told.encode()))}


def retrieval(seed: int, rooms: Rooms) -> Values:
    """The four statements whose embeddings are nearest to the question, in its prompt."""
    from hope_server.evaluation.learning_peers import Embedder

    facts = _facts(seed, rooms.options)
    statements = [fact.statement for fact in facts]
    embedder = Embedder.load(rooms.options.cache_dir)
    began = time.monotonic()
    known = embedder.embed(statements)
    seconds = time.monotonic() - began

    def nearest(question: str) -> str:
        likeness = (known @ embedder.embed([question])[0]).tolist()
        best = sorted(range(len(statements)), key=lambda index: -likeness[index])[:_NUM_RETRIEVED]
        return "\n".join(statements[index] for index in best)

    knower = SessionKnower(rooms.plain().untaught(), nearest)
    size = float(known.nbytes + sum(len(each.encode()) for each in statements))
    return {**judged(facts, knower, rooms.options.sizes.free), "state_bytes": size, "seconds": seconds}


def plain_sgd(seed: int, rooms: Rooms) -> Values:
    """One online pass of plain SGD over the facts in a list."""
    facts, room = _facts(seed, rooms.options), rooms.sgd()
    with room.watched():
        room.forget(f"{seed}")
        session = room.session(f"{seed}")
        began = time.monotonic()
        session.learn(tell(facts, "list", seed)[0], passes=0)
        seconds = time.monotonic() - began
        out = judged(facts, SessionKnower(session), rooms.options.sizes.free)
        windows = held_out_windows(rooms.options.sizes.windows, rooms.options.cache_dir).windows
        change = loss_change_percent(text_losses(windows, room.untaught()), text_losses(windows, session))
        out |= {"state_bytes": float(session.info().memory_bytes), "seconds": seconds}
        room.forget(f"{seed}")
    return {**out, "loss_change_percent": _mean(list(change.values()))}


def fine_tuning(seed: int, rooms: Rooms) -> Values:
    """transformers' model, every weight trained by AdamW, as often over the facts as `learn` rehearses them."""
    from hope_server.evaluation.learning_peers import FineTuned
    from hope_server.settings import Settings

    facts = _facts(seed, rooms.options)
    windows = held_out_windows(rooms.options.sizes.windows, rooms.options.cache_dir).windows
    settings = Settings.load()
    model = FineTuned.load(settings.model, rooms.options.cache_dir)
    before = [(window.name, *model.loss(window)) for window in windows]
    began = time.monotonic()
    model.train([fact.statement for fact in facts], settings.passes_learn, seed)
    seconds = time.monotonic() - began
    out = judged(facts, model, rooms.options.sizes.free)
    change = loss_change_percent(before, [(window.name, *model.loss(window)) for window in windows])
    return {
        **out,
        "state_bytes": float(model.num_bytes),
        "seconds": seconds,
        "loss_change_percent": _mean(list(change.values())),
    }


def sillage(seed: int, rooms: Rooms) -> Values:
    """sillage (1.9.2, its own settings for a model that it does not know) after three readings of the list."""
    from hope_server.evaluation.learning_peers import load_llama
    from hope_server.evaluation.learning_sillage import Sillage
    from hope_server.settings import Settings

    facts = _facts(seed, rooms.options)
    model, tokenizer = load_llama(Settings.load().model, rooms.options.cache_dir)
    folder = rooms.folder / f"sillage-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    memory = Sillage.load(model, tokenizer, folder, rooms.options.cache_dir)
    began = time.monotonic()
    memory.read(tell(facts, "list", seed)[0])
    seconds = time.monotonic() - began
    values = judged(facts, memory, rooms.options.sizes.free)
    return {**values, "state_bytes": float(memory.num_bytes), "seconds": seconds}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


BASELINES: dict[str, Callable[[int, Rooms], Values]] = {
    "no_memory": no_memory,
    "in_prompt": in_prompt,
    "retrieval": retrieval,
    "plain_sgd": plain_sgd,
    "fine_tuning": fine_tuning,
    "sillage": sillage,
}
"""Baselines by name. Each takes a seed, and raises Unavailable, or StartupError, where it cannot be run here."""


def run_baseline(name: str, seed: int, rooms: Rooms) -> Values:
    """Run one baseline. Raises Unavailable with the reason when something that it needs is not there."""
    try:
        return BASELINES[name](seed, rooms)
    except (StartupError, ImportError) as exc:
        raise Unavailable(str(exc)) from exc
