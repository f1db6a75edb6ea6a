"""Meta-trains an adapter, so that few steps of study are enough and what was never told is not guessed.

    python -m hope_server.training.adapt MODEL --out FILE

See `adaptation` for what is followed. The adapter is written every ten episodes and at the end, and goes on from
`--init FILE`; `FILE.metrics` beside it gets every episode's measures, and those of held-out facts, and a plot of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from hope_server.engine.cards import CardMaker
from hope_server.engine.general import encode_block, general_blocks
from hope_server.engine.rehearsal import Tokens
from hope_server.engine.speller import Speller
from hope_server.engine.tokenizer import Tokenizer
from hope_server.errors import CheckpointError, HopeError, SettingsError
from hope_server.model.adapter import load_adapter, random_adapter, save_adapter
from hope_server.model.checkpoint import load_config, load_params, resolve_model, weights_fingerprint
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_statistics import find_statistics
from hope_server.model.presets import CHUNK_SIZE, choose_levels
from hope_server.training.adaptation import Adaptation, AdaptOptions, Ground
from hope_server.training.corpora import load_corpus
from hope_server.training.key_statistics import stretches
from hope_server.training.logs import METRICS_FILE, PLOT_FILE, MetricsLog, plot_losses, read_metrics

CORPORA = ("state_of_union", "python", "wiki")
"""Texts beside the stored general one; others than those that `hope bench learning` measures harm on."""
NUM_STRETCHES = 60
SAVE_EVERY, EVALUATE_EVERY = 10, 20
BLOCK = 256
_CHARS_PER_TOKEN = 8


def main(arguments: list[str] | None = None) -> int:
    """Train one adapter; returns 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m hope_server.training.adapt", description=__doc__)
    parser.add_argument("model", help="a name, or the path of a model folder or a .gguf")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--init", type=Path, help="adapter to go on from (default: one that changes nothing)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="compute threads, 0 takes every core")
    for field in fields(AdaptOptions):
        kind = type(field.default)
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=field.default, help="(default: %(default)s)")
    chosen = parser.parse_args(arguments)
    options = AdaptOptions(**{field.name: getattr(chosen, field.name) for field in fields(AdaptOptions)})
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda is not there; use cpu")
    try:
        with torch.device(chosen.device):
            train(chosen.model, options, chosen.out, chosen.init)
    except (HopeError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def train(name: str, options: AdaptOptions, out: Path, init: Path | None = None) -> None:
    """Train an adapter for a model and write it; raises HopeError."""
    check(options)
    cache = Path(os.environ.get("HOPE_CACHE_DIR", "~/.cache/hope")).expanduser()
    folder = resolve_model(name, cache)
    ground, base = stand_on(folder, options, cache), weights_fingerprint(folder)
    adapter = random_adapter(ground.params, base, options.rank, options.seed) if init is None else load_adapter(init)
    if adapter.base != base:
        raise CheckpointError(f"adapter {init} was made for another network than {name}")
    adaptation = Adaptation(ground, adapter, options)
    metrics = out.with_name(f"{out.name}.metrics")
    log, began = MetricsLog(metrics), time.monotonic()
    try:
        for number in range(1, options.episodes + 1):
            measured = adaptation.episode()
            if number % EVALUATE_EVERY == 0 or number == options.episodes:
                measured |= adaptation.evaluate()
            seconds = time.monotonic() - began
            log.write(number, measured | {"seconds": seconds})
            print(number, *(f"{key} {value:.3f}" for key, value in measured.items()), f"{seconds:.0f} s", flush=True)
            if number % SAVE_EVERY == 0 or number == options.episodes:
                facts = {key: str(value) for key, value in asdict(options).items()}
                facts |= {"episodes done": str(number), "seconds": f"{seconds:.0f}"}
                save_adapter(out, replace(adaptation.adapter, facts=facts))
    finally:
        log.close()
        plot_losses(read_metrics(metrics / METRICS_FILE), out.name, metrics / PLOT_FILE)


def check(options: AdaptOptions) -> None:
    """Raise SettingsError for numbers that cannot be."""
    least = {"lead": 0, "never_weight": 0, "general_weight": 0, "earlier": 0, "seed": 0, "text_tokens": 8}
    for key, value in asdict(options).items():
        limit = least.get(key, 0 if isinstance(value, float) else 1)
        if value < limit or (isinstance(value, float) and key in ("lr", "inner_lr") and value == 0):
            raise SettingsError(f"{key} is {value}; it must be {'above' if key.endswith('lr') else 'at least'} {limit}")


def stand_on(folder: Path, options: AdaptOptions, cache: Path) -> Ground:
    """Load what meta-training needs of a model; raises HopeError."""
    config, statistics = load_config(folder), find_statistics(weights_fingerprint(folder))
    if statistics is None:
        raise SettingsError(f"{folder.name} has no key statistics; measure them: hope_server.training.key_statistics")
    levels = choose_levels("default", config, BLOCK, known=statistics.blocks)
    # Studies are made without gates, which are set behind them.
    slow = replace(next(spec for spec in levels if spec.is_whitened), gate=0.0, lr=options.inner_lr)
    device = torch.get_default_device()
    params = load_params(folder, torch.float32)
    params = params.replaced({name: tensor.to(device) for name, tensor in params.named().items()})
    model = HopeModel(HopeConfig(config, WindowSpec(size=2 * BLOCK), (slow,), CHUNK_SIZE), torch.float32, params)
    tokenizer = Tokenizer.load(folder)
    cards = CardMaker(tokenizer.encode, tokenizer.decode, Speller(tokenizer).frame)
    return Ground(model, params, slow, statistics, cards, tuple(general_texts(tokenizer, options, cache)))


def general_texts(tokenizer: Tokenizer, options: AdaptOptions, cache: Path) -> list[Tokens]:
    """Stretches of general text: the stored one, chats among it, and of corpora."""
    size = options.text_tokens
    out = [encode_block(tokenizer, block)[:size] for block in general_blocks()]
    for corpus in CORPORA:
        parts = stretches(load_corpus(corpus, cache), NUM_STRETCHES, _CHARS_PER_TOKEN * size)
        out += [tuple(tokenizer.encode(part)[:size]) for part in parts]
    return [text for text in out if len(text) > 1]


if __name__ == "__main__":
    sys.exit(main())
