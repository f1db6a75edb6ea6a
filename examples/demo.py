"""Teaches a server some facts, kills it, starts it again, and shows what it still knows from its weights alone.

    python examples/demo.py [--facts FILE] [--unrelated FILE] [--passes N] [--keep]

Both files can be replaced by your own; examples/facts.txt says how. The last line of the output is one JSON object.
Settings of the server can be given as HOPE_<NAME> in the environment, for example HOPE_MODEL.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hope_client import HopeClient, HopeError, LearnProgress, Message, Session
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hope_server.errors import StartupError
from hope_server.evaluation.facts import (
    Fact,
    FactResult,
    change_percent,
    free_answer_accuracy,
    mean_logprob,
    parse_facts,
    parse_texts,
    rank_accuracy,
    says,
    split_opening,
)
from hope_server.evaluation.own_server import OwnServer

HERE = Path(__file__).resolve().parent
REPORT_SECONDS = 5.0
CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
T = TypeVar("T")
STARTED = time.monotonic()


class DemoFailed(Exception):
    """The demo cannot go on; the message is one line that says why."""


def report(text: str) -> None:
    """Print one line with the time since the start."""
    CONSOLE.print(f"{time.monotonic() - STARTED:6.1f} s  {text}", markup=False, soft_wrap=True)


def start(server: OwnServer) -> HopeClient:
    """Start the server, say how long that took, and return a client of it."""
    began = time.monotonic()
    client = server.start(report)
    report(f"server ready after {time.monotonic() - began:.1f} s, process {server.process_id}")
    return client


def learning_reporter(what: str) -> Callable[[LearnProgress], None]:
    """Return a callback that prints a line every few seconds while something is learned."""
    last = time.monotonic()

    def show(progress: LearnProgress) -> None:
        nonlocal last
        if time.monotonic() - last < REPORT_SECONDS:
            return
        last = time.monotonic()
        loss = "" if progress.loss is None else f", loss {progress.loss:.2f}"
        steps = f"step {progress.steps_done} of {progress.steps_total}"
        report(f"  {what}: {progress.tokens_done} of {progress.tokens_total} tokens, {steps}{loss}")

    return show


def teach(session: Session, facts: Sequence[Fact], passes: int | None) -> None:
    """Teach the facts, each the way it asks for, and rehearse them all once more."""
    texts = [fact.teach for fact in facts if fact.via == "learn"]
    if texts:
        report(f"teaching {len(texts)} texts by learn ...")
        result = session.learn("\n\n".join(texts), passes, learning_reporter("learn"))
        report(f"  learned {result.receipt.tokens_learned if result.receipt else 0} tokens")
    for fact in facts:
        if fact.via == "chat":
            reply = session.chat(fact.teach, temperature=0, max_tokens=40)
            report(f"said in a chat: {fact.teach}  ->  {_one_line(reply.text)}")
    report("consolidating ...")
    result = session.consolidate(passes, learning_reporter("consolidate"))
    report(f"  {result.receipt.steps if result.receipt else 0} steps")


@dataclass(frozen=True)
class Sizes:
    """What the session weighs before the kill, in bytes, and its version."""

    memory: int
    snapshot: int
    version: str | None


def ask(session: Session, baseline: Session, facts: Sequence[Fact]) -> list[FactResult]:
    """Ask every question with nothing but the question in the request, and score all answers under each condition."""
    taught = "\n".join(fact.teach for fact in facts)
    candidates = [f" {fact.answer}" for fact in facts]
    results: list[FactResult] = []
    for right, fact in enumerate(facts):
        alone = session.chat(
            fact.question, temperature=0, max_tokens=24, memory={"mode": "read", "window": False}
        ).text.strip()
        with_window = session.chat(fact.question, temperature=0, max_tokens=24, memory={"mode": "read"}).text.strip()
        bare = _conversation(fact.question, fact.lead_in)
        full = _conversation(f"{taught}\n{fact.question}", fact.lead_in)
        logprobs = {
            "none": _per_token(baseline, candidates, bare, window=True),
            "prompt": _per_token(baseline, candidates, full, window=True),
            "weights": _per_token(session, candidates, bare, window=False),
            "window": _per_token(session, candidates, bare, window=True),
        }
        results.append(FactResult(fact, right, alone, logprobs))
        report(f"{fact.question}  ->  {_one_line(alone)}   (with the window: {_one_line(with_window)})")
    return results


def _conversation(question: str, lead_in: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": lead_in}]


def _per_token(session: Session, candidates: list[str], messages: list[Message], *, window: bool) -> tuple[float, ...]:
    return tuple(score.per_token for score in session.score(candidates, messages=messages, window=window))


def _one_line(text: str) -> str:
    # What a model writes must not steer the terminal.
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def unrelated_change(session: Session, baseline: Session, texts: Sequence[str]) -> float:
    """Return by how many percent the loss on unrelated texts rose through what was taught."""
    parts = [split_opening(text) for text in texts]

    def losses(asked: Session) -> list[tuple[float, int]]:
        found = [asked.score([rest], prompt=opening, window=False)[0] for opening, rest in parts]
        return [(score.logprob, score.num_tokens) for score in found]

    return change_percent(losses(baseline), losses(session))


def print_table(results: Sequence[FactResult]) -> None:
    """Print how each question went; log-probabilities are nats per token of the right answer."""
    table = Table(title="asked after kill -9 and restart, nothing but the question in the request, window emptied")
    for name in ("question", "free answer", "right answer"):
        table.add_column(name)
    for name in ("no memory", "in prompt", "weights"):
        table.add_column(f"logp {name}", justify="right")
    for result in results:
        colour = "green" if says(result.free_answer, result.fact.answer) else "red"
        logps = [f"{result.logprobs[name][result.right]:.2f}" for name in ("none", "prompt", "weights")]
        table.add_row(
            result.fact.question, f"[{colour}]{escape(_one_line(result.free_answer))}[/]", result.fact.answer, *logps
        )
    CONSOLE.print(table)


def summarise(results: Sequence[FactResult], unrelated: float, sizes: Sizes) -> dict[str, float]:
    """Return the figures of the last line."""
    return {
        "rank_accuracy": rank_accuracy(results, "weights"),
        "baseline_rank_accuracy": rank_accuracy(results, "none"),
        "in_prompt_rank_accuracy": rank_accuracy(results, "prompt"),
        "with_window_rank_accuracy": rank_accuracy(results, "window"),
        "free_answer_accuracy": free_answer_accuracy(results),
        "logprob_gain_nats": round(mean_logprob(results, "weights") - mean_logprob(results, "none"), 4),
        "unrelated_loss_change_percent": round(unrelated, 3),
        "memory_bytes": sizes.memory,
        "snapshot_bytes": sizes.snapshot,
        "seconds": round(time.monotonic() - STARTED, 1),
    }


def print_targets(figures: dict[str, float]) -> None:
    """Print which targets were reached."""
    in_prompt = figures["in_prompt_rank_accuracy"]
    targets = [
        ("rank accuracy from weights alone", figures["rank_accuracy"] >= 1, "every question"),
        (
            "rank accuracy above that with the facts in the prompt",
            figures["rank_accuracy"] > in_prompt,
            f"> {in_prompt:g}",
        ),
        ("free answers right", figures["free_answer_accuracy"] >= 0.75, ">= 0.75"),
        ("log-probability gained per token", figures["logprob_gain_nats"] >= 5, ">= 5 nats"),
        ("loss on unrelated text", figures["unrelated_loss_change_percent"] <= 2.5, "<= +2.5 %"),
        ("memories and levels", figures["memory_bytes"] <= 8e6, "<= 8 MB"),
        ("snapshot", figures["snapshot_bytes"] <= 24e6, "<= 24 MB"),
        ("whole demo", figures["seconds"] <= 480, "<= 480 s"),
    ]
    for name, is_reached, target in targets:
        CONSOLE.print(f"{'reached' if is_reached else 'missed ':<8} {name} ({target})", markup=False)


def run(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run the whole demo; return its figures. Raises DemoFailed, StartupError or HopeError."""
    facts, texts = _read(args.facts, parse_facts), _read(args.unrelated, parse_texts)
    server = OwnServer(folder)
    try:
        report(f"starting a server on port {server.port} with an empty store")
        with start(server) as client:
            session = client.session("demo")
            client.session("demo-untaught")
            teach(session, facts, args.passes)
            info = session.info()
        sizes = Sizes(info.memory_bytes, info.snapshot_bytes, info.version)
        server.kill()
        report("killed the server with kill -9; starting it again on the same store")
        with start(server) as client:
            session, baseline = client.get_session("demo"), client.get_session("demo-untaught")
            if session.info().version != sizes.version:
                raise DemoFailed(f"the session came back as {session.info().version}, it was {sizes.version}")
            results = ask(session, baseline, facts)
            unrelated = unrelated_change(session, baseline, texts)
    finally:
        server.kill()
    print_table(results)
    return summarise(results, unrelated, sizes)


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DemoFailed(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise DemoFailed(f"{path}: {exc}") from exc


def main() -> int:
    """Run the demo; return 0 when it completed, whatever it measured."""
    parser = argparse.ArgumentParser(description="Teach a server, kill it, and see what it still knows.")
    parser.add_argument("--facts", type=Path, default=HERE / "facts.txt", help="facts to teach (default: %(default)s)")
    parser.add_argument("--unrelated", type=Path, default=HERE / "unrelated.txt", help="texts to measure damage on")
    parser.add_argument("--passes", type=int, help="how often each piece is rehearsed (default: the server's)")
    parser.add_argument("--keep", action="store_true", help="keep the store and the server's log, and say where")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hope-demo-"))
    try:
        figures = run(args, folder)
    except (DemoFailed, StartupError, HopeError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if args.keep:
            report(f"store and log are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print_targets(figures)
    print(json.dumps({name: value if math.isfinite(value) else None for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
