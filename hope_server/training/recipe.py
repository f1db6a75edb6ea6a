"""A recipe: everything that decides how a model is trained, read from one YAML file and checked before it runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from hope_server.errors import SettingsError
from hope_server.model.config import HopeConfig
from hope_server.model.strict_read import read_tree
from hope_server.training.optimizers import OptimizerSpec, check_optimizer
from hope_server.training.recipe_model import ModelSpec, make_config
from hope_server.training.tasks import TaskSpec, TokenizerSpec, check_task, needs_tokenizer

__all__ = ["MAX_SEED", "InnerSpec", "Recipe", "Stage", "differing_keys", "load_recipe", "recipe_digest", "recipe_names"]

MAX_SEED = 2**31 - 1
# They say for how long and how often, not what is computed, so a run may go on with others.
_FREE_KEYS = frozenset({"seeds", "eval_every", "eval_rows", "checkpoint_every", "keep_checkpoints"})


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a length curriculum: rows of `length` tokens up to step `until`. rows: per step, None as elsewhere."""

    until: int
    length: int
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class InnerSpec:
    """How gradients pass through the inner updates.

    truncate_chunks: chunks after which a write is no longer differentiated, None never. online_levels: write the online
    levels while rows are read, as the server does, and train their initial weights. first_order: take the gradients of
    those writes as constants. checkpoint: compute activations again instead of keeping them.
    segment: tokens of one forward call; between calls the state is carried on without gradient. None: a whole row.
    """

    truncate_chunks: int | None = None
    online_levels: bool = True
    first_order: bool = False
    checkpoint: bool = False
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained.

    rows: per step, in `accumulate` equal parts one after the other. length: tokens of a row, unless the curriculum has
    another for the step. seeds: one run each. eval_every, checkpoint_every: steps between; 0 never, but at the end.
    precision: of the forward pass; weights are float32. keep_checkpoints: newest that stay.
    """

    name: str
    model: ModelSpec
    data: tuple[TaskSpec, ...]
    optimizer: OptimizerSpec
    steps: int
    rows: int
    length: int
    tokenizer: TokenizerSpec | None = None
    curriculum: tuple[Stage, ...] = ()
    accumulate: int = 1
    inner: InnerSpec = field(default_factory=InnerSpec)
    precision: Literal["float32", "bfloat16"] = "float32"
    seeds: tuple[int, ...] = (0,)
    eval_every: int = 200
    eval_rows: int = 8
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    @property
    def where(self) -> str:
        """What messages about it begin with."""
        return f"recipe {self.name!r}"

    def stage(self, step: int) -> Stage:
        """Return rows and length of a step, counted from 0."""
        for stage in self.curriculum:
            if step < stage.until:
                return Stage(stage.until, stage.length, stage.rows or self.rows)
        return Stage(self.steps, self.length, self.rows)

    def config(self, vocab_size: int) -> HopeConfig:
        """Return the network's configuration over `vocab_size` tokens; raises SettingsError."""
        return make_config(self.model, self.name, vocab_size, self.where)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the project."""
    folder = resources.files("hope_server.training") / "recipes"
    return tuple(sorted(each.name.removesuffix(".yaml") for each in folder.iterdir() if each.name.endswith(".yaml")))


def load_recipe(name_or_path: str) -> Recipe:
    """Return a recipe by its name or the path of a YAML file; raises SettingsError in one line when it cannot be."""
    path = Path(name_or_path)
    if name_or_path in recipe_names():
        text = (resources.files("hope_server.training") / "recipes" / f"{name_or_path}.yaml").read_text("utf-8")
    elif not path.is_file():
        known = ", ".join(recipe_names())
        raise SettingsError(f"recipe {name_or_path!r} is neither a known name ({known}) nor a YAML file")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"recipe {path.name} cannot be read ({exc})") from exc
    return parse_recipe(text, f"recipe {path.name}")


def parse_recipe(text: str, where: str) -> Recipe:
    """Return the recipe that a YAML text describes; raises SettingsError, beginning with `where`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        reason = " ".join(str(exc).split())[:200]
        raise SettingsError(f"{where} is not YAML ({reason})") from exc
    recipe = read_tree(Recipe, value, where)
    _check_counts(recipe, where)
    _check_lengths(recipe, where)
    if not recipe.data:
        raise SettingsError(f"{where}: data names no task")
    for spec in recipe.data:
        check_task(spec, f"{where}: data")
        if needs_tokenizer(spec) and recipe.tokenizer is None:
            raise SettingsError(f"{where}: task {spec.task!r} reads text; give the recipe a `tokenizer`")
    check_optimizer(recipe.optimizer, f"{where}: optimizer")
    # Any vocabulary shows whether the shapes fit.
    _check_periods(recipe, make_config(recipe.model, recipe.name, 256, where), where)
    return recipe


def recipe_digest(recipe: Recipe) -> str:
    """Return the sha256 (hex) of everything that decides what a step computes."""
    return hashlib.sha256(json.dumps(decisive(recipe), sort_keys=True).encode()).hexdigest()


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, without what may differ between the parts of one run."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return {key: value for key, value in values.items() if key not in _FREE_KEYS}


def differing_keys(first: object, second: object, path: str = "") -> list[str]:
    """Return the dotted keys under which two trees of plain values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(first.keys() | second.keys())
        return [
            found
            for key in keys
            for found in differing_keys(first.get(key), second.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if first == second else [path]


def _check_counts(recipe: Recipe, where: str) -> None:
    least = {"steps": 1, "rows": 1, "length": 2, "accumulate": 1, "eval_every": 0, "eval_rows": 1}
    for name, limit in (least | {"checkpoint_every": 0, "keep_checkpoints": 1}).items():
        if getattr(recipe, name) < limit:
            raise SettingsError(f"{where}: {name} is {getattr(recipe, name)}; it must be at least {limit}")
    seeds = recipe.seeds
    if not seeds or len(set(seeds)) != len(seeds) or not 0 <= min(seeds) <= max(seeds) <= MAX_SEED:
        raise SettingsError(f"{where}: seeds are {list(seeds)}; give one or more, all different, 0 to {MAX_SEED}")
    if not recipe.name.replace("-", "_").replace(".", "_").isidentifier():
        raise SettingsError(f"{where}: name is {recipe.name!r}; use letters, digits, - and _")
    inner = recipe.inner
    for name in ("truncate_chunks", "segment"):
        if (value := getattr(inner, name)) is not None and value < 1:
            raise SettingsError(f"{where}: inner: {name} is {value}; it must be at least 1, or left out")


def _check_lengths(recipe: Recipe, where: str) -> None:
    before = 0
    for stage in (*recipe.curriculum, Stage(recipe.steps, recipe.length, recipe.rows)):
        rows = stage.rows or recipe.rows
        if stage.until <= before and stage.until != recipe.steps:
            raise SettingsError(f"{where}: curriculum: until {stage.until} must be above {before}, the stage before it")
        if stage.length < 2 or rows < 1:
            raise SettingsError(f"{where}: curriculum: length {stage.length} and rows {rows} must be at least 2 and 1")
        if rows % recipe.accumulate:
            raise SettingsError(f"{where}: accumulate {recipe.accumulate} does not divide the {rows} rows of a step")
        before = stage.until


def _check_periods(recipe: Recipe, config: HopeConfig, where: str) -> None:
    segment, chunk = recipe.inner.segment, config.chunk_size
    if segment is not None and segment % chunk:
        raise SettingsError(f"{where}: inner: segment {segment} must be a multiple of the chunk of {chunk} tokens")
    longest = max(recipe.length, *(stage.length for stage in recipe.curriculum), 0)
    for level in config.levels:
        if level.schedule == "online" and level.update_period >= longest:
            raise SettingsError(
                f"{where}: level {level.name!r} is written every {level.update_period} tokens, and no row is longer "
                f"than {longest}, so nothing would ever read what it learns; use a shorter period or longer rows"
            )
    if config.titans is not None and chunk >= longest and config.titans.reads == "chunk_start":
        raise SettingsError(
            f"{where}: model: chunk_size {chunk} is not below the {longest} tokens of a row, so nothing ever reads "
            "what a memory learns; use a smaller chunk or longer rows"
        )
