"""Measures the keys of a network on general text, for levels that learn in whitened keys.

    python -m hope_server.training.key_statistics MODEL --out FILE

reads windows of public texts (fetched as packages) and writes what `hope_server.model.key_statistics` reads. The file
in the package was made so, with the defaults, for the default model.
Shapes: B windows at once, T tokens of a window, D model width, F MLP width.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hope_server.errors import HopeError
from hope_server.model.checkpoint import (
    load_config,
    load_params,
    load_tokenizer_source,
    resolve_model,
    weights_fingerprint,
)
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.key_reader import KeyReader
from hope_server.model.key_statistics import save_statistics, whitening_of
from hope_server.model.params import Params
from hope_server.training.corpora import load_corpus

SHARES = {"wiki": 40, "state_of_union": 8, "python": 8, "austen": 8}
"""Stretches of each text, spread evenly over it."""
WINDOWS_PER_STRETCH = 13
WINDOW = 128
FIRST_WEIGHT = 8.0
"""How often a window's first token counts: its keys are extreme, and all later tokens attend to it."""
_ROWS = 8


@dataclass(slots=True)
class KeySums:
    """Sums of k kᵀ over the keys of some blocks, in float64, and the number of keys."""

    sums: dict[int, torch.Tensor]
    num_tokens: int = 0

    def add(self, block: int, keys: torch.Tensor) -> None:
        """Add keys [B, T, F], the first of each window as often as `FIRST_WEIGHT` says."""
        keys[:, 0] *= FIRST_WEIGHT**0.5
        flat = keys.flatten(0, 1)
        self.sums[block] += flat.T @ flat


def measure(config: HopeConfig, params: Params, windows: Iterable[torch.Tensor], blocks: Sequence[int]) -> KeySums:
    """Sum k kᵀ of the blocks over windows [B, T]."""
    size = config.model.intermediate_size
    found = KeySums({block: torch.zeros(size, size, dtype=torch.float64) for block in blocks})
    reader = KeyReader(config, blocks, found.add)
    for tokens in windows:
        reader.take(params, tokens)
        found.num_tokens += tokens.numel()
    return found


def stretches(text: str, count: int, size: int) -> list[str]:
    """`count` stretches of `size` characters, spread evenly over a text."""
    return [text[start : start + size] for start in (int((n + 0.5) / count * 0.97 * len(text)) for n in range(count))]


def main(arguments: list[str] | None = None) -> int:
    """Measure one model and write the file; returns 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m hope_server.training.key_statistics", description=__doc__)
    parser.add_argument("model", help="a name, or the path of a model folder or a .gguf")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--blocks", default="8,11,14,17", help="blocks to measure (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    cache = Path(os.environ.get("HOPE_CACHE_DIR", "~/.cache/hope")).expanduser()
    try:
        _write(chosen.model, [int(block) for block in chosen.blocks.split(",")], chosen.out, cache)
    except HopeError as exc:
        print(exc.message, file=sys.stderr)
        return 1
    return 0


def _write(name: str, blocks: list[int], out: Path, cache: Path) -> None:
    from hope_server.engine.tokenizer import Tokenizer

    folder = resolve_model(name, cache)
    model = load_config(folder)
    tokenizer = Tokenizer(load_tokenizer_source(folder), model.vocab_size)
    windows: list[list[int]] = []
    for corpus, count in SHARES.items():
        for text in stretches(load_corpus(corpus, cache), count, 6 * WINDOWS_PER_STRETCH * WINDOW):
            ids = tokenizer.encode(text)[: WINDOWS_PER_STRETCH * WINDOW]
            windows += [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    batches = [torch.tensor(windows[start : start + _ROWS]) for start in range(0, len(windows), _ROWS)]
    config = HopeConfig(model, WindowSpec(size=512, num_sinks=0, precision="model"))
    found = measure(config, load_params(folder, torch.float32), batches, blocks)
    whitening = {block: whitening_of(total / found.num_tokens) for block, total in found.sums.items()}
    facts = {"tokens": str(found.num_tokens), "texts": ", ".join(f"{key} {count}" for key, count in SHARES.items())}
    save_statistics(out, weights_fingerprint(folder), whitening, facts)
    print(f"{out}: blocks {blocks}, {found.num_tokens} tokens")


if __name__ == "__main__":
    sys.exit(main())
