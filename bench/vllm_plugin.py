"""Measures vLLM with our plugin beside plain vLLM: the same base network, the same prompts, turns in alternating order.

    python bench/vllm_plugin.py [--blocks 5,15,25] [--dtype float32|bfloat16] [--quick] [--rounds N] [--json NAME]

The plugin's side has Titans branches whose gates are closed: they read, write, load and commit as ever, and both sides
say the same tokens, which is checked. Every request of that side is a turn of a session; sessions go on from turn to
turn, so their states are loaded from the store and committed to it. A side stands still while the other computes.
No figure is printed unless both sides give the first tokens the same log-probabilities.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from asking import Asking
from engine import decode_rate
from growth import middle_ratio
from machine import median, say
from outcome import arguments, finish, head, print_head, target_lines
from retrofit import BLOCKS, retrofit
from sides import NO_PLUGIN, NO_VLLM, Served, has_plugin, has_vllm, serve_plugin, serve_vllm, vllm_versions
from target import Target
from wording import Wording, real_model

from hope_server.model.hf_export import export

NUM_PROMPT, NUM_NEW, NUM_READ = 128, 64, 512
COUNTS = (1, 8)
LONGEST = 2048
LARGEST_DIFFERENCE = 1e-3
"""Of two log-probabilities, in nats: both sides compute alike, but their batches add up in other orders."""
LEAST = 0.85
_CASES = {"turn": "whole turns", "decode": "decode", "read": "prefill"}
TARGETS = tuple(
    Target(f"ratio_{case}_{count}", f"{count} sessions, {title}, plugin / plain vLLM", LEAST)
    for case, title in _CASES.items()
    for count in COUNTS
)


class SessionAsking(Asking):
    """Asks so that each request is the next turn of one of as many sessions as are asked at once."""

    def __init__(self, url: str, count: int) -> None:
        super().__init__(url, is_vllm=True)
        self._names = itertools.cycle([f"bench-{count}-{place}" for place in range(count)])

    def body(self, prompt: str, num_new: int) -> dict[str, object]:
        """As `Asking.body`, in a session."""
        return {**super().body(prompt, num_new), "session_id": next(self._names)}


def main() -> int:
    """Measure and print; 1 where the sides do not compute the same, 2 where vLLM or the plugin is missing."""
    args = _arguments()
    if not has_vllm() or not has_plugin():
        print(NO_PLUGIN if has_vllm() else NO_VLLM)
        return 2
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hope-bench-")))
        wording, _, source = real_model()
        assert source is not None, "the real model has a folder"
        say("writing both models …")
        plain = export(source, folder / "plain", args.dtype)
        ours = export(retrofit(source, folder / "retrofit", args.blocks), folder / "ours", args.dtype)
        options = {"dtype": args.dtype, "max_tokens": LONGEST, "num_rows": max(COUNTS)}
        say("starting plain vLLM …")
        peer = stack.enter_context(serve_vllm(folder, plain, args.threads, keeps_prefixes=False, **options))
        peer.wait_ready()
        peer.pause()
        say("starting vLLM with the plugin …")
        server = stack.enter_context(serve_plugin(folder, ours, args.threads, **options))
        server.wait_ready()
        server.pause()
        difference = _difference(server, peer, wording)
        if not difference <= LARGEST_DIFFERENCE and args.dtype == "float32":
            print(f"log-probabilities differ by {difference:.2e}, the limit is {LARGEST_DIFFERENCE:g}: no figures")
            return 1
        figures = {"logprob_difference": difference, **_measure(server, peer, wording, args)}
    result = head(args, dtype=args.dtype, blocks=list(args.blocks), peers=vllm_versions(), figures=figures)
    print_head(result, {**result["versions"], **vllm_versions()})  # type: ignore[dict-item]
    _print(args, figures)
    finish(result, args.json)
    return 0


def _arguments() -> argparse.Namespace:
    parser = arguments(str(__doc__))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="weights of both sides")
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)), help="blocks that get a Titans branch")
    args = parser.parse_args()
    args.blocks = tuple(int(block) for block in args.blocks.split(","))
    args.rounds = args.rounds or (1 if args.quick else 7)
    return args


def _difference(server: Served, peer: Served, wording: Wording) -> float:
    """How far the sides' log-probabilities of the first tokens of some replies are apart, at most."""
    worst = 0.0
    for seed in range(3):
        found = []
        for number, side in enumerate((server, peer)):
            asking = SessionAsking(side.url, 1) if number == 0 else Asking(side.url, is_vllm=True)
            with side.awake():
                body = {**asking.body(wording.text(64, seed=1000 + seed), 4), "logprobs": 1}
                found.append(asking.post("/v1/completions", body)["choices"][0]["logprobs"])
        if found[0]["tokens"] != found[1]["tokens"]:
            return float("inf")
        pairs = zip(found[0]["token_logprobs"], found[1]["token_logprobs"], strict=True)
        worst = max(worst, *(abs(ours - theirs) for ours, theirs in pairs))
    return worst


def _measure(server: Served, peer: Served, wording: Wording, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of both sides, medians, and the medians of the rounds' ratios."""
    num_prompt, num_new, num_read = (32, 16, 64) if args.quick else (NUM_PROMPT, NUM_NEW, NUM_READ)
    rates: dict[str, list[float]] = {}
    sides: dict[str, tuple[Served, Callable[[int], Asking]]] = {
        "ours": (server, lambda count: SessionAsking(server.url, count)),
        "vllm": (peer, lambda _: Asking(peer.url, is_vllm=True)),
    }
    for number in range(-1, args.rounds):
        say("both sides, warming up …" if number < 0 else f"both sides, round {number + 1} of {args.rounds} …")
        for count in COUNTS:
            short, long = (
                [wording.text(size, seed=100 * number + place) for place in range(count)]
                for size in (num_prompt, num_read)
            )
            for name in sorted(sides, reverse=number % 2 == 1):
                side, make = sides[name]
                asking = make(count)
                with side.awake():
                    seconds = asking.complete_all(short, num_new)
                    found = {
                        "turn": count * (num_prompt + num_new) / seconds,
                        "decode": decode_rate(asking, short, num_new),
                        "read": first_token_rate(asking, long, num_read),
                    }
                for case, rate in found.items():
                    rates.setdefault(f"{name}_{case}_{count}", []).append(rate)
        if number < 0:
            rates.clear()
    out = {f"{name}_tokens_per_second": median(values) for name, values in rates.items()}
    names = [f"{case}_{count}" for case in _CASES for count in COUNTS]
    return out | {f"ratio_{name}": middle_ratio(rates[f"ours_{name}"], rates[f"vllm_{name}"]) for name in names}


def first_token_rate(asking: Asking, prompts: list[str], num_tokens: int) -> float:
    """Tokens per second of all prompts together, each of `num_tokens`, until each has its first token.

    As it streams out: a reply of one token alone would be held back for its commit.
    """
    with ThreadPoolExecutor(len(prompts)) as pool:
        heard = list(pool.map(lambda prompt: asking.complete(prompt, 2), prompts))
    return len(prompts) * num_tokens / max(each.first_seconds for each in heard)


def _print(args: argparse.Namespace, figures: dict[str, float]) -> None:
    blocks = ", ".join(map(str, args.blocks))
    print(f"{args.dtype}; over HTTP; greedy; Titans branches in blocks {blocks}, closed; states in a SQLite file")
    print(f"turns: prompts of {NUM_PROMPT} tokens, {NUM_NEW} new, loaded and committed; prefill: {NUM_READ} until the")
    print("first token; decode: the difference of long and short replies; eager, prefix caches off")
    print(f"largest difference of log-probabilities between the sides: {figures['logprob_difference']:.1e} nats")
    print("\ntokens per second, medians           plugin     plain vLLM   ratio")
    for case, title in _CASES.items():
        for count in COUNTS:
            ours, theirs = (figures[f"{side}_{case}_{count}_tokens_per_second"] for side in ("ours", "vllm"))
            name = f"{count} sessions, {title}"
            print(f"{name:<36}{ours:>7.1f}{theirs:>15.1f}{figures[f'ratio_{case}_{count}']:>8.2f}")
    print()
    print("\n".join(target_lines(TARGETS, figures)))


if __name__ == "__main__":
    sys.exit(main())
