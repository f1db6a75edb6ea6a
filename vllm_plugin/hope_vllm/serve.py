"""Serves an exported model: vLLM's own OpenAI server, set up as sessions need it.

    python -m hope_vllm.serve FOLDER [options of vLLM's server …]

`hope serve --engine vllm` writes the folder and starts this. Options of sessions (store, keys, durability, …) come by
the variable HOPE_VLLM_OPTIONS or in --kv-transfer-config, as `options` has them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from hope_server.errors import HopeError
from hope_vllm.names import CONNECTOR, SCHEDULER
from hope_vllm.options import read_options

_TRANSFER = {"kv_connector": CONNECTOR, "kv_role": "kv_both", "kv_connector_extra_config": {}}


def server_words(folder: str, others: Sequence[str]) -> list[str]:
    """The command line of vLLM's server for a model folder; `others` are added, and count where they repeat one."""
    # Steps are short and many, and a turn's last token is known only after it: neither is for captured graphs.
    words = ["--model", folder, "--scheduler-cls", SCHEDULER, "--no-async-scheduling", "--no-enable-prefix-caching"]
    words += ["--enforce-eager"]
    if not any(word.split("=")[0] in ("--kv-transfer-config", "--kv_transfer_config") for word in others):
        words += ["--kv-transfer-config", json.dumps(_TRANSFER)]
    return [*words, *others]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; returns 1 where the options cannot be used, 2 without a folder."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        # Before the seconds that a model takes; the engine's process reads them again.
        read_options({})
    except HopeError as exc:
        print(f"hope-vllm: {exc}", file=sys.stderr)
        return 1
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    from hope_vllm.refusals import tell_reasons

    tell_reasons()
    # vLLM keeps one core free for a connector's own transfers, which this one has none of; of two it would leave none.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "1")
    sys.argv = ["hope_vllm.serve", *server_words(given[0], given[1:])]
    serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
