"""Runs `hope bench learning`: every part of every seed, each kept when it is finished, and the baselines beside them.

What is kept is found again only by the same code, the same settings of the server and the same sizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import hope_kernels

import hope_server
from hope_server.errors import StartupError
from hope_server.evaluation.learning_room import Address, Classroom, Say, Values, alone, read_values, write_values
from hope_server.evaluation.learning_texts import choice_items, held_out_windows, reading_text
from hope_server.evaluation.learning_trials import PARTS, Sizes, Trial

__all__ = ["Found", "LearningOptions", "run_key", "run_learning", "settings_of"]

_SOURCES = (".py", ".yaml", ".txt", ".jinja", ".cpp", ".h", ".json", ".safetensors")
_MEASURING = frozenset(
    {
        "facts.py",
        "learning_baselines.py",
        "learning_facts.py",
        "learning_peers.py",
        "learning_phrases.yaml",
        "learning_probe.py",
        "learning_sillage.py",
        "learning_texts.py",
        "learning_trials.py",
    }
)
# Settings of the environment that say nothing about what is learned.
_UNIMPORTANT = frozenset({"HOPE_HOST", "HOPE_PORT", "HOPE_STORE", "HOPE_API_KEYS", "HOPE_CACHE_DIR", "HOPE_LOG_LEVEL"})


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """What `hope bench learning` was asked for.

    parts: names of learning_trials.PARTS. baselines: names of learning_baselines.BASELINES. out, work: folders of the
    report and of finished parts. url, api_key: of a server to measure in place of one of our own. command: as typed.
    """

    seeds: tuple[int, ...]
    parts: tuple[str, ...]
    baselines: tuple[str, ...]
    sizes: Sizes
    out: Path
    work: Path
    cache_dir: Path
    url: str = ""
    api_key: str | None = None
    is_quick: bool = False
    is_fresh: bool = False
    command: str = ""


@dataclass(slots=True)
class Found:
    """What was measured: by part and seed, by baseline and seed, and what had to be left out and why."""

    parts: dict[str, dict[int, Values]] = field(default_factory=dict)
    baselines: dict[str, dict[int, Values]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0


def run_learning(options: LearningOptions, say: Say) -> Found:
    """Measure all that was asked for; `say` gets a line for each finished part.

    Raises StartupError where a server does not start or dies, and what the client raises.
    """
    began = time.monotonic()
    found = Found()
    folder = options.work / run_key(options)
    with alone(folder):
        if options.is_fresh:
            _clear(folder)
        _clear_stores(options.work)
        _run_parts(options, folder, found, say)
        _run_baselines(options, folder, found, say)
    found.missing = list(dict.fromkeys(found.missing))
    found.wall_seconds = time.monotonic() - began
    return found


def _clear(folder: Path) -> None:
    """Delete what earlier runs finished."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink()


def _clear_stores(work: Path) -> None:
    """Delete the stores of runs that were interrupted and cannot go on, as the code or the settings changed since."""
    for room in work.glob("*/room"):
        # Of a run that goes on, this one's or another's, nothing is touched.
        with suppress(StartupError), alone(room.parent):
            shutil.rmtree(room, ignore_errors=True)


def _run_parts(options: LearningOptions, folder: Path, found: Found, say: Say) -> None:
    with _open_room(options, folder, say) as room:
        trial = _trial_maker(options, room, folder, found)
        for seed in options.seeds:
            for part in PARTS:
                if part in options.parts and (values := _run_part(part, trial(seed), folder, options, say)):
                    found.parts.setdefault(part, {})[seed] = values
            room.end(f"{seed}-chat")


@contextmanager
def _open_room(options: LearningOptions, folder: Path, say: Say) -> Iterator[Classroom]:
    """The room that all parts share; its store goes when all is done, and stays for the next run when one fails."""
    elsewhere = None
    if options.url:
        elsewhere = Address(options.url, options.api_key, f"bench-{secrets.token_hex(4)}")
    room = Classroom(folder / "room", say, elsewhere=elsewhere)
    try:
        with room.watched():
            if options.url:
                room.reach()
            yield room
    except BaseException:
        room.close()
        raise
    room.remove()


def _trial_maker(options: LearningOptions, room: Classroom, folder: Path, found: Found) -> Callable[[int], Trial]:
    """Get the texts that the parts need, and return what makes the trial of a seed."""
    sizes = options.sizes
    windows = held_out_windows(sizes.windows, options.cache_dir) if "damage" in options.parts else None
    choices = choice_items(sizes.choices, options.cache_dir) if "choices" in options.parts else None
    reading = ""
    found.missing += [line for each in (windows, choices) if each for line in each.missing]
    if "delay" in options.parts:
        try:
            reading = reading_text(options.cache_dir)
        except StartupError as exc:
            found.missing.append(exc.message)
    kept: dict[str, Values] = {}

    def base(name: str, measure: Callable[[], Values]) -> Values:
        if name not in kept:
            kept[name] = _kept(folder / f"base-{name}-{_hash(asdict(sizes))}.json", options, measure)[0]
        return kept[name]

    return lambda seed: Trial(
        seed,
        room,
        sizes,
        reading=reading,
        windows=windows.windows if windows else (),
        choices=choices.choices if choices else (),
        base=base,
    )


def _run_part(part: str, trial: Trial, folder: Path, options: LearningOptions, say: Say) -> Values | None:
    """Run a part or read what it gave before; None where what it needs could not be had."""
    needed = {"damage": trial.windows, "choices": trial.choices, "delay": trial.reading}
    if not needed.get(part, True):
        return None
    path = folder / f"seed-{trial.seed}" / f"{part}-{_hash(asdict(options.sizes))}.json"
    began = time.monotonic()
    values, is_old = _kept(path, options, lambda: PARTS[part](trial))
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:4])
    say(f"seed {trial.seed} · {part}: {shown} ({'kept' if is_old else f'{time.monotonic() - began:.0f} s'})")
    return values


def _run_baselines(options: LearningOptions, folder: Path, found: Found, say: Say) -> None:
    from hope_server.evaluation.learning_baselines import Rooms, Unavailable, run_baseline

    rooms = Rooms(options, folder / "baselines", say)
    try:
        for name in options.baselines:
            for seed in options.seeds:
                path = folder / f"seed-{seed}" / f"baseline-{name}-{_hash(asdict(options.sizes))}.json"
                began = time.monotonic()
                try:
                    values, is_old = _kept(path, options, partial(run_baseline, name, seed, rooms))
                except Unavailable as exc:
                    found.missing.append(f"baseline {name}: {exc}")
                    say(f"baseline {name} is left out: {exc}")
                    break
                found.baselines.setdefault(name, {})[seed] = values
                shown = ", ".join(f"{key} {value:.4g}" for key, value in list(values.items())[:4])
                say(f"seed {seed} · {name}: {shown} ({'kept' if is_old else f'{time.monotonic() - began:.0f} s'})")
    finally:
        rooms.close()


def _kept(path: Path, options: LearningOptions, measure: Callable[[], Values]) -> tuple[Values, bool]:
    """What a file keeps, else what is measured now; and which of both it was. Of another's server nothing is kept."""
    if options.url:
        return measure(), False
    old = read_values(path)
    if old is not None:
        return old, True
    values = measure()
    write_values(path, values)
    return values, False


def run_key(options: LearningOptions) -> str:
    """Return the name under which a run's finished parts are kept: of the code, the settings and what is taught."""
    settings = {name: _content(value) for name, value in os.environ.items() if _matters(name)}
    sizes = options.sizes
    taught = [sizes.facts, sizes.fewer, sizes.many, sizes.lesson]
    return _hash([_source_fingerprint(), settings, taught, bool(options.url)])


def settings_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that can change what is measured; of a file its name alone."""
    return {name: Path(value).name for name, value in sorted(environ.items()) if _matters(name)}


def _matters(name: str) -> bool:
    return name.startswith("HOPE_") and name not in _UNIMPORTANT


def _content(value: str) -> str:
    """A setting's value; of one that names a file, also what is in it."""
    path = Path(value).expanduser()
    try:
        return f"{value} {hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else value
    except OSError:
        return value


@cache
def _source_fingerprint() -> str:
    """A hash of the code and data that decide what is measured; a commit does not tell of changes in the tree."""
    digest = hashlib.sha256()
    for package in (hope_server, hope_kernels):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*")):
            if path.suffix in _SOURCES and path.is_file() and _decides(path.relative_to(root)):
                digest.update(f"{path.relative_to(root)} ".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _decides(path: Path) -> bool:
    """Whether a file can change what is measured: of this bench, only what teaches, asks and judges can."""
    if path.parts[0] == "evaluation":
        return path.name in _MEASURING
    return path.parts[0] not in ("cli", "training")


def _hash(value: Mapping[str, object] | Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
