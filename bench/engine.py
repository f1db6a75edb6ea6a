"""Measures our server's engine beside vLLM's CPU build, learning on beside off, and work at once beside one by one.

    python bench/engine.py [--parts peers,learning,background,mixed] [--no-peers] [--quick] [--rounds N] [--json NAME]

Both sides are asked over HTTP, as they are used: what a server does around its engine counts, and vLLM's engine in a
process of its own cannot be driven token by token as ours can. They have the same weights, type and threads, greedy
replies of one length and the same prompts, short enough for our window; a side stands still while the other computes.
Decoding is timed as the difference of two runs of the same prompts, one of which asks for a single token. No figure
is printed unless both sides give the first tokens the same log-probabilities.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from asking import Asking
from engine_learning import measure_background, measure_learning, measure_mixed
from export_hf import export
from growth import middle_ratio, rate_by_difference
from machine import median, say
from outcome import arguments, finish, head, print_head, target_lines
from sides import HOPE, NO_VLLM, TOY, Served, has_vllm, serve_hope, serve_vllm, vllm_libraries, vllm_versions
from target import Target
from wording import Wording, real_model, toy_model

PARTS = ("peers", "learning", "background", "mixed")
NUM_PROMPT, NUM_NEW, NUM_READ = 32, 64, 256
SESSIONS = (1, 8, 32)
READERS = (1, 8)
LONGEST = 2048
LARGEST_DIFFERENCE = 0.1
"""Of two log-probabilities, in nats: our window keeps keys and values rounded to bfloat16, which vLLM does not."""
# A session in every slot that the largest part needs; nothing is refused for waiting.
FLAGS = ("--num-slots", "64", "--max-waiting-turns", "128")
TARGETS = (
    Target("ratio_decode_1", "1 session, decode, ours / vLLM", 1.0),
    Target("ratio_decode_8", "8 sessions, decode, ours / vLLM", 0.8),
    Target("ratio_decode_32", "32 sessions, decode, ours / vLLM", 0.8),
    Target("ratio_read_1", "1 session, prefill, ours / vLLM", 0.8),
    Target("ratio_read_8", "8 sessions, prefill, ours / vLLM", 0.8),
    Target("ratio_decode_on_off", "decode, online learning on / off", 0.9),
    Target("ratio_read_on_off", "prefill, online learning on / off", 0.5),
    Target("ratio_beside_consolidation", "decode beside another session's consolidation / alone", 0.8),
    Target("ratio_mixed_chat", "64 chatting sessions at once / the same one at a time, turns per second", 4.0),
    Target("ratio_mixed_reading", "64 sessions that mostly read, the same", 4.0),
)


def main() -> int:
    """Measure and print; 1 where the sides do not compute the same, 2 where vLLM is missing."""
    args = _arguments()
    if "peers" in args.parts and not has_vllm():
        print(NO_VLLM)
        return 2
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hope-bench-")))
        wording, bias, model = toy_model() if args.quick else real_model()
        flags = [*FLAGS] if args.dtype == "float32" else [*FLAGS, "--dtype", args.dtype]
        say("starting our server …")
        server = serve_hope(folder, args.threads, flags, serve=TOY if args.quick else HOPE)
        stack.enter_context(server)
        server.wait_ready()
        ours = Asking(server.url, bias)
        if "peers" in args.parts:
            assert model is not None
            difference = _measure_peers(folder, model, server, ours, wording, args, figures)
            if not difference <= LARGEST_DIFFERENCE:
                print(f"log-probabilities differ by {difference:.2e}, the limit is {LARGEST_DIFFERENCE:g}: no figures")
                return 1
        rounds, is_small = args.rounds, args.quick
        if "learning" in args.parts:
            figures |= measure_learning(ours, wording, rounds, is_small=is_small)
        if "background" in args.parts:
            figures |= measure_background(ours, wording, rounds, is_small=is_small)
        if "mixed" in args.parts:
            figures |= measure_mixed(ours, wording, max(1, rounds // 2), is_small=is_small)
    peers = vllm_versions() if "peers" in args.parts else {}
    loaded = [Path(name).name for name in vllm_libraries()]
    result = head(args, dtype=args.dtype, parts=args.parts, peers=peers, preloaded=loaded, figures=figures)
    print_head(result, {**result["versions"], **peers})  # type: ignore[dict-item]
    _print(args, figures)
    finish(result, args.json)
    return 0


def _arguments() -> argparse.Namespace:
    parser = arguments(str(__doc__))
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="weights of both sides")
    parser.add_argument("--no-peers", action="store_true", help="leave vLLM out")
    args = parser.parse_args()
    args.parts = [part for part in args.parts.split(",") if part]
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"--parts has {', '.join(unknown)}; known are {', '.join(PARTS)}")
    if args.quick or args.no_peers:
        args.parts = [part for part in args.parts if part != "peers"]
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


def _measure_peers(
    folder: Path,
    model: Path,
    server: Served,
    ours: Asking,
    wording: Wording,
    args: argparse.Namespace,
    figures: dict[str, float],
) -> float:
    """Fill in the figures of both sides; returns how far their log-probabilities differ, and no figures if too far."""
    say("starting vLLM …")
    server.pause()
    exported = export(model, folder / "hf", args.dtype)
    try:
        with serve_vllm(
            folder,
            exported,
            args.threads,
            dtype=args.dtype,
            keeps_prefixes=False,
            max_tokens=LONGEST,
            num_rows=max(SESSIONS),
        ) as other:
            other.wait_ready()
            sides = {"ours": (server, ours), "vllm": (other, Asking(other.url, is_vllm=True))}
            other.pause()
            figures["logprob_difference"] = _difference(sides, wording)
            if figures["logprob_difference"] <= LARGEST_DIFFERENCE:
                figures |= _both(sides, wording, args.rounds)
            return figures["logprob_difference"]
    finally:
        server.go_on()


def _difference(sides: dict[str, tuple[Served, Asking]], wording: Wording) -> float:
    """Largest difference of the log-probability of a reply's first token; infinite where the tokens differ."""
    worst = 0.0
    for number in range(4):
        found: dict[str, tuple[str, float]] = {}
        for name, (side, asking) in sides.items():
            with side.awake():
                body = asking.body(wording.text(NUM_READ, seed=number), 1) | {"logprobs": 1}
                drawn = asking.post("/v1/completions", body)["choices"][0]
            found[name] = drawn["text"], drawn["logprobs"]["token_logprobs"][0]
        if found["ours"][0] != found["vllm"][0]:
            return float("inf")
        worst = max(worst, abs(found["ours"][1] - found["vllm"][1]))
    return worst


def _both(sides: dict[str, tuple[Served, Asking]], wording: Wording, rounds: int) -> dict[str, float]:
    """Tokens per second of both sides, medians, and the ratios of a round."""
    rates: dict[str, list[float]] = {}

    def note(name: str, case: str, rate: Callable[[Asking], float]) -> None:
        side, asking = sides[name]
        with side.awake():
            rates.setdefault(f"{name}_{case}", []).append(rate(asking))

    for number in range(-1, rounds):
        say("both sides, warming up …" if number < 0 else f"both sides, round {number + 1} of {rounds} …")
        order = sorted(sides, reverse=number % 2 == 1)
        for count in SESSIONS:
            prompts = [wording.text(NUM_PROMPT, seed=100 * number + place) for place in range(count)]
            for name in order:
                note(name, f"decode_{count}", lambda asking, prompts=prompts: decode_rate(asking, prompts, NUM_NEW))  # type: ignore[misc]
        for count in READERS:
            prompts = [wording.text(NUM_READ, seed=100 * number + place) for place in range(count)]
            for name in order:
                note(name, f"read_{count}", lambda asking, prompts=prompts: read_rate(asking, prompts, NUM_READ))  # type: ignore[misc]
        if number < 0:
            rates.clear()
    cases = [*(f"decode_{count}" for count in SESSIONS), *(f"read_{count}" for count in READERS)]
    out = {f"{name}_tokens_per_second": median(values) for name, values in rates.items()}
    return out | {f"ratio_{case}": middle_ratio(rates[f"ours_{case}"], rates[f"vllm_{case}"]) for case in cases}


def decode_rate(asking: Asking, prompts: list[str], num_new: int) -> float:
    """Tokens per second of all replies together beyond their first tokens."""
    short = asking.complete_all(prompts, 1)
    return rate_by_difference(len(prompts) * (num_new - 1), asking.complete_all(prompts, num_new), short)


def read_rate(asking: Asking, prompts: list[str], num_tokens: int) -> float:
    """Tokens per second of all prompts together, each of `num_tokens`, until each has one token of reply."""
    return len(prompts) * num_tokens / asking.complete_all(prompts, 1)


def _print(args: argparse.Namespace, figures: dict[str, float]) -> None:
    print(
        f"{args.dtype}; over HTTP; greedy; decoding: prompts of {NUM_PROMPT} tokens, {NUM_NEW} new; reading {NUM_READ}"
    )
    if "logprob_difference" in figures:
        print(f"largest difference of log-probabilities between the sides: {figures['logprob_difference']:.1e} nats")
        loaded = ", ".join(Path(name).name for name in vllm_libraries()) or "nothing"
        print(f"vLLM runs eagerly, without torch.compile and Triton, its prefix cache off; preloaded: {loaded}")
        print("\ntokens per second, medians             ours           vLLM   ratio")
        titles = {f"decode_{count}": f"{count} sessions, decode" for count in SESSIONS}
        titles |= {f"read_{count}": f"{count} sessions, prefill" for count in READERS}
        for case, title in titles.items():
            ours, theirs = (figures[f"{side}_{case}_tokens_per_second"] for side in ("ours", "vllm"))
            print(f"{title:<36}{ours:>7.1f}{theirs:>15.1f}{figures[f'ratio_{case}']:>8.2f}")
    print("\nours alone, medians")
    for name, value in figures.items():
        if not name.startswith(("ours_", "vllm_", "ratio_", "logprob_")):
            print(f"{name:<56}{value:>10.2f}")
    print()
    print("\n".join(target_lines(TARGETS, figures)))


if __name__ == "__main__":
    sys.exit(main())
