"""Measures speed, learning cost, start and memory side by side with transformers. Run by `make bench`.

    python bench/run.py [--quick] [--threads N] [--json NAME]

Both sides run in one process, on the same tensors (float32) and threads, in turns. No figure is printed unless our
logits equal transformers' first. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from baseline import load_baseline
from learning import NUM_READ, NUM_SAID, STEP_TEXT_TOKENS, measure_learning
from machine import MIB, ROOT, describe, say
from server import CHAT_TOKENS, NUM_CHATS, measure_server
from speed import LIMIT, NUM_NEW, NUM_PROMPT, NUM_SESSIONS, Loaded, logit_difference, measure_speed
from target import Target

from hope_server.engine.assembly import hope_config
from hope_server.engine.tokenizer import Tokenizer
from hope_server.model.checkpoint import load_config, load_weights, resolve_model
from hope_server.model.params import fuse_params
from hope_server.settings import Settings

TARGETS = (
    Target("ratio_1_prefill", "1 session, prefill, ours / transformers", 1.0),
    Target("ratio_1_decode", "1 session, decode, ours / transformers", 1.0),
    Target("ratio_8_decode", "8 sessions batched / 8 in sequence with transformers, decode", 3.0),
    Target("ratio_read_on_off", "reading, online learning on / off", 0.5),
    Target("ratio_decode_on_off", "decoding, online learning on / off", 0.5),
    Target("start_seconds", "seconds from start to ready, warm cache", 15.0, at_least=False),
    Target("server_peak_gb", "largest resident memory of the server, GB", 1.5, at_least=False),
)


def main() -> int:
    """Measure everything and print it; 1 where our logits are not those of transformers."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    say(f"loading {Settings().model} …")
    loaded = _load()
    baseline = load_baseline(loaded.config.model, loaded.params)
    difference = logit_difference(loaded, baseline)
    if not difference <= LIMIT:
        print(f"our logits differ from transformers' by {difference:.2e}, the limit is {LIMIT:g}: nothing is measured")
        return 1
    text = (ROOT / "examples" / "unrelated.txt").read_text(encoding="utf-8")
    figures: dict[str, object] = {"logit_difference": difference}
    with tempfile.TemporaryDirectory(prefix="hope-bench-") as name:
        folder = Path(name)
        taught = loaded.tokenizer.decode(loaded.tokenizer.encode(text)[:STEP_TEXT_TOKENS])
        figures |= measure_server(folder, taught, args.threads, starts=1 if args.quick else 3)
        figures |= measure_speed(loaded, baseline, repeats=2 if args.quick else 4)
        del baseline
        figures |= asyncio.run(measure_learning(loaded, text, folder, repeats=2 if args.quick else 4))
    figures["server_peak_gb"] = float(str(figures["server_peak_bytes"])) / 1e9
    result = describe(args.threads) | {"dtype": "float32", "quick": args.quick, "figures": figures}
    _print(result, figures)
    if args.json:
        _write(args.json, result)
    print(json.dumps(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of both sides")
    parser.add_argument("--json", metavar="NAME", help="also write bench/results/NAME.json")
    return parser.parse_args()


def _load() -> Loaded:
    settings = Settings.load()
    folder = resolve_model(settings.model, settings.cache_dir)
    params = fuse_params(load_config(folder), load_weights(folder, torch.float32))
    config = hope_config(settings, folder)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, config.model.vocab_size, (NUM_SESSIONS, NUM_PROMPT), generator=generator)
    return Loaded(folder, config, params, Tokenizer.load(folder), drawn.tolist())


def _print(result: dict[str, object], figures: dict[str, object]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in dict(result["versions"]).items())  # type: ignore[call-overload]
    print(f"{result['cpu']}, {result['cores']} cores, {result['threads']} threads; {result['system']}")
    print(f"python {result['python']}, {versions}; float32")
    print(f"commit {result['commit']}; {result['command']}")
    print(
        f"shapes: prompts of {NUM_PROMPT} random tokens, {NUM_NEW} new; reading {NUM_READ} tokens of text, saying "
        f"{NUM_SAID}; learning {STEP_TEXT_TOKENS} tokens; {NUM_CHATS} chats of {CHAT_TOKENS} new tokens at once"
    )
    print(f"largest difference from transformers' logits on the tensors timed: {figures['logit_difference']:.1e}")
    print("\ntokens per second, medians             ours   transformers   ratio")
    for case, title in (
        ("1_prefill", "1 session, prefill"),
        ("1_decode", "1 session, decode"),
        ("8_prefill", "8 sessions, prefill (one by one)"),
        ("8_decode", "8 sessions, decode (ours batched)"),
    ):
        ours, theirs = (figures[f"{side}_{case}_tokens_per_second"] for side in ("ours", "theirs"))
        print(f"{title:<36}{ours:>7.1f}{theirs:>15.1f}{figures[f'ratio_{case}']:>8.2f}")
    print("\nwhole turns through the engine; consolidation is explicit, off the path of these turns")
    print("tokens per second, medians               on            off   ratio")
    for kind, title in (("read", "online learning, reading"), ("decode", "online learning, decoding")):
        on, off = (figures[f"{kind}_{mode}_tokens_per_second"] for mode in ("on", "off"))
        print(f"{title:<36}{on:>7.1f}{off:>15.1f}{figures[f'ratio_{kind}_on_off']:>8.2f}")
    print(f"\nconsolidation: {figures['consolidation_step_seconds']:.2f} s a step (median)")
    print(
        f"another session's stream: {figures['stream_gap_seconds']:.3f} s between tokens alone, "
        f"{figures['stream_gap_while_learning_seconds']:.3f} s beside a consolidation, "
        f"longest stall {figures['stream_longest_stall_seconds']:.2f} s"
    )
    print("\nserver, resident memory in MiB            now           peak")
    for stage, entry in dict(figures["server_memory"]).items():  # type: ignore[call-overload]
        print(f"after {stage:<30}{entry['rss_bytes'] / MIB:>7.0f}{entry['peak_bytes'] / MIB:>15.0f}")
    print()
    for target in TARGETS:
        print(target.line(float(str(figures[target.name])))[1])


def _write(name: str, result: dict[str, object]) -> None:
    path = ROOT / "bench" / "results" / f"{Path(name).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
