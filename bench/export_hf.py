"""Writes a converted network as a folder that transformers and vLLM read: the same weights under their names.

    python bench/export_hf.py FOLDER [--model NAME] [--dtype float32|bfloat16]

An exported folder is taken as it is when it was made of the same weights in the same type.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import say

from hope_server.model.checkpoint import resolve_model
from hope_server.model.hf_export import DTYPES, export
from hope_server.settings import Settings


def main() -> int:
    """Export the model that is named."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--model", default=Settings().model, help="name or path of a base network")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights that are written")
    args = parser.parse_args()
    source = resolve_model(args.model, Settings.load().cache_dir)
    say(f"{source.name} is in {export(source, args.folder, args.dtype)} for transformers and vLLM, {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
