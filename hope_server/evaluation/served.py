"""What a trained model keeps of a chat and of a text, its memories writing and frozen: `dialogue` and `perplexity`.

Everything is read in segments with the state carried on, so that a row may be far longer than what fits at once.
Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hope_server.evaluation.fit import Network
from hope_server.evaluation.lengths import chosen_lengths
from hope_server.evaluation.outcome import Cell, Options, Outcome
from hope_server.evaluation.perplexity import DEFAULT_TEXT, load_text, position_groups
from hope_server.evaluation.served_model import load_served
from hope_server.evaluation.trials import QUICK_SEED, choose_names
from hope_server.training.batch import Batch
from hope_server.training.chat_codec import ChatCodec
from hope_server.training.dialogues import DialogueTask, split_passages

__all__ = ["CONDITIONS", "ServedSuite", "dialogue_suite", "text_suite"]

CONDITIONS = ("memories on", "memories frozen")
DEFAULT_MODEL = "hope-nano"
DISTANCES = (64, 256, 1024, 4096, 16384, 65536)
_QUICK_DISTANCES = (64, 512, 2048)
_SEGMENT = 256
_NUM_FACTS = 8
_SHORTEST_TEXT = 32


class Measure(Protocol):
    """Measures a network on fresh rows: a value for each condition."""

    def __call__(self, network: Network, tokenizer_json: str, seed: int) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class ServedSuite:
    """The `Suite` of one served model; `measure` is run with its memories writing and frozen, for each seed.

    digest: of what is measured besides the model. load: from model name, whether frozen, and device.
    """

    name: str
    title: str
    about: str
    unit: str
    part: str
    model: str
    digest: str
    measure: Measure
    notes: tuple[str, ...] = ()
    load: Callable[[str, bool, str], tuple[Network, str]] = load_served

    @property
    def columns(self) -> tuple[str, ...]:
        """Memories writing, and frozen as they are at a session's start."""
        return CONDITIONS

    @property
    def parts(self) -> tuple[str, ...]:
        """The one part."""
        return (self.part,)

    def plan(self, options: Options, done: Sequence[Outcome]) -> list[Cell]:
        """Return a cell for each condition and seed."""
        columns = choose_names("condition", options.columns, self.columns, self.columns)
        choose_names("part", options.parts, self.parts, self.parts)
        seeds = (QUICK_SEED,) if options.is_quick else options.seeds
        network, tokenizer_json = (None, "") if done else self.load(self.model, False, options.device)
        if network is None:
            return []
        settings = {"model": self.model, "weights": _digest(network), "measured": self.digest}
        settings["tokenizer"] = hashlib.sha256(tokenizer_json.encode()).hexdigest()[:16]
        return [Cell(self.part, column, seed, settings) for column in columns for seed in seeds]

    def run(self, cell: Cell, options: Options) -> Outcome:
        """Measure one condition with one seed's rows."""
        network, tokenizer_json = self.load(self.model, cell.column == CONDITIONS[1], options.device)
        values = self.measure(network, tokenizer_json, cell.seed)
        num_params = sum(tensor.numel() for tensor in network.tensors().values())
        facts = {"parameters": num_params, "state bytes": network.state_bytes, "weights": f"{self.model} as served"}
        return Outcome(cell.part, cell.column, cell.seed, values, facts)


def dialogue_suite(options: Options) -> ServedSuite:
    """Recall of facts told in a chat, against the number of tokens between telling and asking."""
    distances = chosen_lengths(options, _QUICK_DISTANCES if options.is_quick else DISTANCES, 1)
    rows = 2 if options.is_quick else 4
    source = options.text or DEFAULT_TEXT
    passages = split_passages(load_text(source).decode())

    def measure(network: Network, tokenizer_json: str, seed: int) -> dict[str, float]:
        task = DialogueTask(tokenizer_json, passages)
        values = {}
        for distance in distances:
            generator = torch.Generator().manual_seed(7_000_003 * (seed + 1) + distance)
            batches = [task.evaluation_batch(1, _NUM_FACTS, distance, generator) for _ in range(rows)]
            values[f"{distance:,}"] = share_right(network, batches)
        return values

    return ServedSuite(
        "dialogue",
        "Recall in a dialogue against distance",
        f"{_NUM_FACTS} facts are told in a chat, then comes other talk and reading aloud, then each fact is asked for."
        " An answer is right when every token of its value is the likeliest. Columns: the same network with its"
        " memories writing, and with them frozen as they are at a session's start.",
        "answers right, %, by tokens between telling and asking",
        "facts",
        options.model or DEFAULT_MODEL,
        f"{distances} {rows} {_NUM_FACTS} {hashlib.sha256(load_text(source)).hexdigest()[:16]}",
        measure,
        (
            f"{rows} dialogues for each distance and seed; names, places and things of held-out combinations.",
            "The state has the same bytes at every distance; the text read aloud is not what the model was trained on.",
        ),
    )


def text_suite(options: Options) -> ServedSuite:
    """Perplexity of a served model against position in a text."""
    (length,) = chosen_lengths(options, (2048,), _SHORTEST_TEXT, most=1)
    rows = 2 if options.is_quick else 16
    source = options.text or DEFAULT_TEXT

    def measure(network: Network, tokenizer_json: str, seed: int) -> dict[str, float]:
        tokens = torch.tensor(ChatCodec(tokenizer_json).encode(load_text(source).decode()))
        if len(tokens) <= length:
            raise ValueError(f"the text has {len(tokens):,} tokens for windows of {length:,}; choose shorter --lengths")
        generator = torch.Generator().manual_seed(7_000_003 * (seed + 1))
        starts = torch.randint(len(tokens) - length, (rows,), generator=generator).tolist()
        windows = torch.stack([tokens[start : start + length + 1] for start in starts])
        return perplexities(network, windows)

    return ServedSuite(
        "perplexity",
        f"Perplexity of {options.model} against position",
        "Windows of a text, read with the memories writing and with them frozen.",
        "perplexity per token (lower is better), by position",
        "text",
        options.model,
        f"{length} {rows} {hashlib.sha256(load_text(source)).hexdigest()[:16]}",
        measure,
        (f"Text: {options.text or 'reference of the Python language (pydoc_data)'}; {rows} windows for each seed.",),
    )


@torch.no_grad()
def share_right(network: Network, batches: Sequence[Batch]) -> float:
    """Return the share of answers right, in %; an answer is a run of scored positions of a row."""
    num_right = num_asked = 0
    for batch in batches:
        hits = []
        for logits, (start, stop) in _segments(network, batch.tokens):
            hits.append(logits.argmax(-1).cpu() == batch.targets[:, start:stop])
        is_hit, is_scored = torch.cat(hits, dim=1), batch.weights > 0
        for row_hits, row_scored in zip(is_hit.tolist(), is_scored.tolist(), strict=True):
            answers = list(_runs(row_scored))
            num_asked += len(answers)
            num_right += sum(all(row_hits[start:stop]) for start, stop in answers)
    return 100 * num_right / num_asked if num_asked else math.nan


@torch.no_grad()
def perplexities(network: Network, windows: torch.Tensor) -> dict[str, float]:
    """Return the perplexity of windows [B, T + 1] by groups of positions, each as long as all before it."""
    losses = []
    for logits, (start, stop) in _segments(network, windows[:, :-1]):
        targets = windows[:, start + 1 : stop + 1].to(logits.device)
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        )
        losses[-1] = losses[-1].view(targets.shape).cpu()
    joined = torch.cat(losses, dim=1)
    groups = position_groups(joined.shape[1])
    return {f"{start + 1}-{stop}": float(joined[:, start:stop].mean().exp()) for start, stop in groups}


def _segments(network: Network, tokens: torch.Tensor) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Read tokens [B, T] piece by piece; yields logits [B, n, V] and the places that they belong to."""
    state = None
    for start in range(0, tokens.shape[1], _SEGMENT):
        piece = tokens[:, start : start + _SEGMENT].to(network.device)
        logits, state = network.run(piece, state)
        yield logits, (start, start + piece.shape[1])


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and end of every run of true flags."""
    start = None
    for place, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            yield start, place
            start = None


def _digest(network: Network) -> str:
    total = hashlib.sha256()
    for tensor in network.tensors().values():
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
