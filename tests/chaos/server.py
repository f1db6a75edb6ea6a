"""`hope serve` with a toy model, and a nursery that forks such servers in milliseconds: what a chaos run kills.

    python -m tests.chaos.server FLAGS          serve; FLAGS as those of `hope serve`
    python -m tests.chaos.server --nursery      for each line of JSON {"flags": […], "log": path} fork a server, print
                                                its process id; kill all of them when stdin ends

Everything but the weights is the real thing: command line, API, engine, store, signals. Importing torch takes seconds
and a fork of a process that has imported it does not, so servers can be killed often.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import torch
import uvicorn  # noqa: F401  imported before the fork
from toys import make_params, make_tokenizer

import hope_server.api.app  # noqa: F401  imported before the fork
from hope_server.cli import main
from hope_server.engine import assembly
from hope_server.engine.engine import Engine
from hope_server.model.config import HopeConfig, LevelSpec, ModelConfig, WindowSpec
from hope_server.settings import Settings

# Two levels, of which one stays unchanged for longer than versions are kept; a turn takes about 15 ms.
_MODEL = ModelConfig("toy", 300, 16, 24, 2, 2, 1, 8, 10_000.0, 1e-5, 4096, True)
_FAST = LevelSpec("fast", (1,), rank=1, schedule="online", update_period=32, lr=1e-2)
_SLOW = LevelSpec("slow", (0,), rank=1, update_period=32, lr=2e-2)
CONFIG = HopeConfig(_MODEL, WindowSpec(560, 2, "bfloat16"), (_FAST, _SLOW), 32)
FLAGS = (
    "--model=toy",
    "--consolidation-block=512",
    "--consolidation-delay=32",
    "--passes-user=1",
    "--passes-assistant=0",
    "--num-slots=8",
    "--drain-seconds=3",
)


def build_toy(settings: Settings, _progress: Callable[[str, float], None] | None = None) -> Engine:
    """Stand in for `build_engine`: random weights, the same in every process."""
    torch.set_num_threads(1)
    params = make_params(torch.float32, CONFIG.model)
    return assembly.assemble(settings, CONFIG, params, make_tokenizer(), "toy-weights")


def serve(flags: Sequence[str]) -> int:
    """Serve until a signal ends it; return the exit code."""
    assembly.build_engine = build_toy
    return main(["serve", *FLAGS, *flags])


def nursery() -> None:
    """Fork a server for each line of stdin; at its end kill the whole process group."""
    os.setsid()
    # Dead servers are taken away at once; nobody asks for their exit code here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become_server(order["flags"], order["log"])
        print(child, flush=True)
    os.killpg(0, signal.SIGKILL)


def _become_server(flags: Sequence[str], log: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = serve(flags)
        print(f"exit code {code}", flush=True)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        sys.exit(serve(sys.argv[1:]))
