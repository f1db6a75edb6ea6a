"""transformers' Llama in a process of its own: answers each prompt, a line of JSON, with the seconds it took.

python bench/transformers_side.py FOLDER THREADS DTYPE
"""

from __future__ import annotations

import json
import sys

import torch
from baseline import generate
from export_hf import DTYPES
from transformers import GenerationConfig, LlamaForCausalLM


def main() -> int:
    """Answer until stdin ends."""
    folder, num_threads, dtype = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).train(False)
    model.generation_config = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0)  # type: ignore[no-untyped-call]
    for line in sys.stdin:
        asked = json.loads(line)
        first, rest = generate(model, asked["prompt"], asked["num_new"])
        print(json.dumps({"first_seconds": first, "rest_seconds": rest}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
