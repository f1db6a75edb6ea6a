"""Writes a base network with fresh Titans branches beside its attention, to measure and to test with; untrained.

    python bench/retrofit.py FOLDER [--model NAME] [--blocks 5,15,25] [--gate 0] [--seed 0] [--export] [--dtype TYPE]

With the gate at 0 the network says what it said, while its memories do all of their work; `--export` writes the folder
as vLLM reads it, otherwise as our own server does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from machine import say

from hope_server.model.base_import import BaseModel
from hope_server.model.checkpoint import load_config, load_params, load_tokenizer_source, resolve_model
from hope_server.model.config import WindowSpec
from hope_server.model.families import family_config, retrofitted
from hope_server.model.hf_export import DTYPES, MARK, export
from hope_server.model.model_cache import install_model, is_complete
from hope_server.settings import Settings

BLOCKS = (5, 15, 25)


def retrofit(source: Path, target: Path, blocks: tuple[int, ...] = BLOCKS, gate: float = 0.0, seed: int = 0) -> Path:
    """Write the converted base network `source` with branches in `blocks`, let in by `gate`; returns `target`.

    A folder that is complete is taken as it is.
    """
    if is_complete(target):
        return target
    model = load_config(source)
    # As long as a turn may be, and unrounded: what vLLM's attention sees.
    window = WindowSpec(size=2048, num_sinks=0, precision="model")
    config = family_config("retrofit", model, window, titans={"blocks": blocks})
    params = retrofitted(load_params(source, torch.float32), config, seed)
    opened = []
    for block in params.blocks:
        titans = block.titans
        opened.append(
            block if titans is None else replace(block, titans=replace(titans, branch=torch.full((1,), gate)))
        )
    named = replace(params, blocks=tuple(opened)).named()
    hope = {key: value for key, value in asdict(config).items() if key != "model"}
    whole = BaseModel(model, load_tokenizer_source(source), {name: part.clone() for name, part in named.items()})
    install_model(whole, f"retrofit of {model.name}", target, lambda stage, fraction: None, hope)
    return target


def main() -> int:
    """Write the folder that is named."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--model", default=Settings().model, help="name or path of a base network")
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)), help="blocks that get a branch")
    parser.add_argument("--gate", type=float, default=0.0, help="how far the branches are open")
    parser.add_argument("--seed", type=int, default=0, help="of the fresh weights")
    parser.add_argument("--export", action="store_true", help="write it as vLLM reads it")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of exported weights")
    args = parser.parse_args()
    blocks = tuple(int(block) for block in args.blocks.split(","))
    if args.export and (args.folder / MARK).exists():
        return 0
    source = resolve_model(args.model, Settings.load().cache_dir)
    if args.export:
        with tempfile.TemporaryDirectory(prefix="hope-retrofit-") as scratch:
            export(retrofit(source, Path(scratch) / "model", blocks, args.gate, args.seed), args.folder, args.dtype)
    else:
        retrofit(source, args.folder, blocks, args.gate, args.seed)
    say(f"{args.folder} has {source.name} with Titans branches in blocks {args.blocks}, gate {args.gate:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
