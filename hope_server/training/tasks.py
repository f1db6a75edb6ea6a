"""The tasks that a recipe can name, how each is made of a recipe's arguments, and mixtures of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from hope_server.errors import SettingsError
from hope_server.evaluation.formal import FormalTask
from hope_server.evaluation.mad import CompressionTask, FuzzyRecallTask, MemorisationTask
from hope_server.evaluation.recall import NeedleTask, PairsTask, SelectiveCopyTask
from hope_server.evaluation.stories import StoryTask
from hope_server.evaluation.streams import StreamTask
from hope_server.evaluation.translation import TranslationTask
from hope_server.model.strict_read import read_tree
from hope_server.training.batch import Batch, Task
from hope_server.training.books import BookTask
from hope_server.training.bpe import train_tokenizer
from hope_server.training.chat_codec import TokenWeights
from hope_server.training.corpora import CORPORA, load_corpora
from hope_server.training.dialogues import DialogueTask, dialogue_texts, split_passages

__all__ = [
    "TASK_NAMES",
    "MixtureTask",
    "ProbedTask",
    "TaskSpec",
    "TokenizerSpec",
    "build_tokenizer",
    "check_task",
    "make_task",
    "needs_tokenizer",
]


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """The tokenizer of tasks that read text: trained on dialogues and on every `book_share`-th passage of corpora."""

    vocab_size: int = 4096
    corpora: tuple[str, ...] = ("austen", "moby_dick")
    dialogues: int = 1000
    book_share: int = 8


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task of a recipe. weight: its share of the rows; arguments: see the class that the name stands for."""

    task: str
    weight: float = 1.0
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DialogueArguments:
    """Arguments of the task `dialogues`. corpora: what is read aloud, none if empty; weights: of the loss.

    The others are those of DialogueTask.
    """

    corpora: tuple[str, ...] = ("austen", "moby_dick")
    weights: TokenWeights = field(default_factory=TokenWeights)
    probe_distances: tuple[int, ...] = (64, 256)
    probe_facts: int = 4
    kinds: tuple[str, ...] = ()
    is_plain: bool = False
    far_share: float = 0.0


@dataclass(frozen=True, slots=True)
class BookArguments:
    """Arguments of the task `books`: plain text, each token scored alike."""

    corpora: tuple[str, ...] = ("austen", "moby_dick")
    probe_length: int = 256


@runtime_checkable
class ProbedTask(Protocol):
    """A task that is measured on rows of its own making besides drawn ones."""

    def probes(self, num_rows: int, generator: torch.Generator) -> dict[str, Batch]:
        """Return what is measured, by name; rows need not have the length of training."""
        ...


class MixtureTask:
    """Draws each row from one of several tasks by their weights; all must have the same vocabulary and targets."""

    def __init__(self, tasks: Sequence[Task], weights: Sequence[float]) -> None:
        sizes = {task.vocab_size for task in tasks}
        if len(sizes) != 1:
            raise SettingsError(f"data: mixed tasks must share one vocabulary, these have {sorted(sizes)} tokens")
        self._tasks = tuple(tasks)
        self._weights = torch.tensor(weights, dtype=torch.float64)

    @property
    def vocab_size(self) -> int:
        """That of every task."""
        return self._tasks[0].vocab_size

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw the number of rows of each task, then the rows."""
        chosen = torch.multinomial(self._weights, num_rows, replacement=True, generator=generator)
        counts = torch.bincount(chosen, minlength=len(self._tasks)).tolist()
        parts = [
            task.sample(count, length, generator) for task, count in zip(self._tasks, counts, strict=True) if count
        ]
        if len({part.is_multi_hot for part in parts}) != 1:
            raise SettingsError(
                "data: tasks whose targets are tokens cannot be mixed with those whose targets are sets"
            )
        return Batch(
            *(torch.cat(each) for each in zip(*((p.tokens, p.targets, p.weights) for p in parts), strict=True))
        )

    def probes(self, num_rows: int, generator: torch.Generator) -> dict[str, Batch]:
        """Return the probes of every task that has some."""
        found: dict[str, Batch] = {}
        for task in self._tasks:
            if isinstance(task, ProbedTask):
                found |= task.probes(num_rows, generator)
        return found


_GENERATED: dict[str, type[Any]] = {
    "formal": FormalTask,
    "pairs": PairsTask,
    "needle": NeedleTask,
    "selective_copy": SelectiveCopyTask,
    "compression": CompressionTask,
    "fuzzy_recall": FuzzyRecallTask,
    "memorisation": MemorisationTask,
    "stories": StoryTask,
    "streams": StreamTask,
    "translation": TranslationTask,
}


def _make_dialogues(arguments: DialogueArguments, tokenizer_json: str, cache_dir: Path) -> Task:
    passages = _passages(arguments.corpora, cache_dir)
    return DialogueTask(
        tokenizer_json,
        passages,
        arguments.weights,
        arguments.probe_distances,
        arguments.probe_facts,
        arguments.kinds,
        is_plain=arguments.is_plain,
        far_share=arguments.far_share,
    )


def _make_books(arguments: BookArguments, tokenizer_json: str, cache_dir: Path) -> Task:
    return BookTask(tokenizer_json, list(load_corpora(arguments.corpora, cache_dir).values()), arguments.probe_length)


_READING: dict[str, tuple[type[Any], Callable[[Any, str, Path], Task]]] = {
    "dialogues": (DialogueArguments, _make_dialogues),
    "books": (BookArguments, _make_books),
}

TASK_NAMES = (*_READING, *_GENERATED)
"""Every task that a recipe can name; those that read text come first."""


def check_task(spec: TaskSpec, where: str) -> Any:
    """Return the arguments of a task as its class reads them; raises SettingsError, makes and fetches nothing."""
    if spec.task not in TASK_NAMES:
        raise SettingsError(f"{where}: task {spec.task!r} is unknown; known are {', '.join(TASK_NAMES)}")
    if not spec.weight > 0:
        raise SettingsError(f"{where}: the weight of task {spec.task!r} is {spec.weight}; it must be above 0")
    kind = _READING[spec.task][0] if spec.task in _READING else _GENERATED[spec.task]
    arguments = read_tree(kind, spec.arguments, f"{where}: {spec.task}")
    for name in getattr(arguments, "corpora", ()):
        if name not in CORPORA:
            raise SettingsError(f"{where}: corpus {name!r} is unknown; known are {', '.join(CORPORA)}")
    return arguments


def needs_tokenizer(spec: TaskSpec) -> bool:
    """Return whether the task reads text."""
    return spec.task in _READING


def make_task(specs: Sequence[TaskSpec], tokenizer_json: str | None, cache_dir: Path, where: str) -> Task:
    """Return the task, or the mixture, of a recipe.

    Raises SettingsError for unknown names and arguments and for a missing tokenizer; StartupError for missing data.
    """
    tasks: list[Task] = []
    for spec in specs:
        arguments = check_task(spec, where)
        if spec.task in _GENERATED:
            tasks.append(arguments)
            continue
        if tokenizer_json is None:
            raise SettingsError(f"{where}: task {spec.task!r} reads text; give the recipe a `tokenizer`")
        tasks.append(_READING[spec.task][1](arguments, tokenizer_json, cache_dir))
    return tasks[0] if len(tasks) == 1 else MixtureTask(tasks, [spec.weight for spec in specs])


def build_tokenizer(spec: TokenizerSpec, cache_dir: Path) -> str:
    """Return the JSON of the recipe's tokenizer, from the cache or else trained now.

    Raises SettingsError for a vocabulary that is too small, StartupError when a corpus cannot be had.
    """
    digest = hashlib.sha256(json.dumps(asdict(spec)).encode()).hexdigest()[:12]
    path = cache_dir / "tokenizers" / f"{digest}.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    passages = _passages(spec.corpora, cache_dir)[:: spec.book_share]
    text = train_tokenizer(dialogue_texts(passages, spec.dialogues), spec.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    return text


def _passages(corpora: tuple[str, ...], cache_dir: Path) -> list[str]:
    return [passage for text in load_corpora(corpora, cache_dir).values() for passage in split_passages(text)]
