"""`hope train`: trains a model by a recipe, goes on with an interrupted run, and writes the model's folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_server.cli.console import CommandError, print_json, remark, say, stderr_console
from hope_server.settings import Settings

if TYPE_CHECKING:
    import torch

    from hope_server.training.recipe import Recipe

_DTYPES = ("float16", "bfloat16", "float32")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hope train`."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="name of a recipe, or a YAML file (default: list)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="where runs go (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    parser.add_argument("--seed", metavar="N", type=int, help="train this seed only (default: each of the recipe's)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="compute threads, 0 takes every core")
    parser.add_argument("--dtype", choices=_DTYPES, default="float16", help="of the exported weights")
    parser.add_argument("--json", action="store_true", help="write the result as JSON, one object a run")
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    """Train every seed that was asked for; return 0."""
    import torch

    from hope_server.training.recipe import load_recipe, recipe_names
    from hope_server.training.runs import Run, run_folder

    if args.recipe is None:
        for name in recipe_names():
            print(name)
        return 0
    recipe = load_recipe(args.recipe)
    device = _device(args.device)
    if args.threads < 0:
        raise CommandError(f"--threads is {args.threads}; give 0 for every core, or a number of threads", 2)
    torch.set_num_threads(args.threads or _num_cores())
    cache_dir = Settings.load().cache_dir
    _tell_missing()
    for seed in _seeds(recipe, args.seed):
        folder = run_folder(args.out, recipe, seed)
        run = Run(recipe, seed, folder, cache_dir, device)
        say(f"{recipe.name}, seed {seed}: {run.num_params:,} weights on {device}, in {folder}")
        result = _train(run, args.resume)
        model = run.export(dtype=getattr(torch, args.dtype))
        result |= {"recipe": recipe.name, "seed": seed, "folder": str(folder), "model": str(model) if model else None}
        if args.json:
            print_json(result)
        else:
            print(f"{folder}: trained" + (f"; serve it with: hope serve --model {model}" if model else ""))
    return 0


def _train(run: Any, is_resumed: bool) -> dict[str, Any]:
    from hope_server.training.logs import METRICS_FILE, read_metrics
    from hope_server.training.progress import watch

    try:
        with watch(stderr_console()) as watcher:
            run.train(watcher, is_resumed=is_resumed)
    except KeyboardInterrupt:
        say("hope: stopped and saved; go on with --resume")
        raise
    lines = read_metrics(run.folder / METRICS_FILE)
    last: dict[str, Any] = next((line for line in reversed(lines) if "eval loss" in line), {})
    return {"num_params": run.num_params, "metrics": last}


def _seeds(recipe: Recipe, asked: int | None) -> tuple[int, ...]:
    if asked is None:
        return recipe.seeds
    from hope_server.training.recipe import MAX_SEED

    if not 0 <= asked <= MAX_SEED:
        raise CommandError(f"--seed is {asked}; it must be 0 to {MAX_SEED}", 2)
    return (asked,)


def _device(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as exc:
        raise CommandError(f"--device {name!r} is unknown; use cpu or cuda", 2) from exc
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise CommandError(f"--device {name!r} is not there; use cpu", 2)
    return device


def _num_cores() -> int:
    # A container or taskset may allow fewer cores than the machine has; not every system can say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell_missing() -> None:
    from hope_server.training.logs import missing_extras

    if missing := missing_extras():
        remark(f"{' and '.join(missing)} not installed: no plots or events; pip install 'hope-server[plots]'")
