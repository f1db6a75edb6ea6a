"""Recipes: what comes with the project is sound, and what cannot be trained is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hope_server.errors import SettingsError
from hope_server.training.recipe import differing_keys, load_recipe, parse_recipe, recipe_digest, recipe_names

TOY = {
    "name": "toy",
    "model": {"family": "hope", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "chunk_size": 8, "window": 16},
    "data": [{"task": "pairs"}],
    "optimizer": {"lr": "2e-3"},
    "steps": 10,
    "rows": 4,
    "length": 32,
}


def parse(**changes: object) -> object:
    """Parse the toy recipe with changes to its top keys; None removes a key."""
    value = {key: item for key, item in (TOY | changes).items() if item is not None}
    return parse_recipe(yaml.safe_dump(value), "recipe toy.yaml")


def test_sizes_that_are_left_out_follow_from_the_others() -> None:
    """Head size and MLP width come from the width; Titans stand in every block."""
    config = parse().config(100)
    assert (config.model.head_dim, config.model.intermediate_size, config.model.vocab_size) == (16, 128, 100)
    assert config.titans is not None
    assert (config.titans.blocks, config.titans.head_dim) == ((0, 1), 16)
    assert config.attention_blocks == ()


@pytest.mark.parametrize(
    ("family", "attends", "has_titans"),
    [("hope", False, True), ("titans", False, True), ("delta", False, True), ("transformer", True, False)],
)
def test_a_family_decides_what_mixes_tokens(family: str, attends: bool, has_titans: bool) -> None:
    """Attention in the Transformer, memories in the others."""
    config = parse(model=TOY["model"] | {"family": family}).config(10)
    assert (bool(config.attention_blocks), config.titans is not None) == (attends, has_titans)


def test_titans_fields_override_the_familys() -> None:
    """What a recipe says of the memories wins over the family."""
    model = TOY["model"] | {"family": "hope-attention", "titans": {"blocks": [1], "memory": "mlp", "hidden_size": 8}}
    titans = parse(model=model).config(10).titans
    assert titans is not None
    assert (titans.blocks, titans.memory, titans.hidden_size, titans.beside_attention) == ((1,), "mlp", 8, True)


LEVEL = {"name": "fast", "blocks": [1], "schedule": "online", "update_period": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, "unknown key 'step'; did you mean steps?"),
        ({"rows": None}, "rows is missing"),
        ({"rows": 0}, "rows is 0; it must be at least 1"),
        ({"seeds": []}, "seeds are []; give one or more"),
        ({"seeds": [1, 1]}, "seeds are [1, 1]; give one or more, all different"),
        ({"name": "a/b"}, "name is 'a/b'; use letters, digits"),
        ({"accumulate": 3}, "accumulate 3 does not divide the 4 rows of a step"),
        ({"data": []}, "data names no task"),
        ({"data": [{"task": "chess"}]}, "task 'chess' is unknown; known are dialogues"),
        ({"data": [{"task": "pairs", "weight": 0}]}, "the weight of task 'pairs' is 0.0; it must be above 0"),
        ({"data": [{"task": "pairs", "arguments": {"pairs": 3}}]}, "unknown key 'pairs'; did you mean num_pairs?"),
        ({"data": [{"task": "dialogues"}]}, "task 'dialogues' reads text; give the recipe a `tokenizer`"),
        (
            {"data": [{"task": "books", "arguments": {"corpora": ["hamlet"]}}], "tokenizer": {}},
            "corpus 'hamlet' is unknown; known are austen",
        ),
        ({"optimizer": {"name": "lion"}}, "optimizer: 'lion' is unknown; known are sgd"),
        ({"optimizer": {"lr": 0}}, "optimizer: lr is 0.0; it must be above 0"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "must lie in 0..1, 1 excluded"),
        ({"precision": "float16"}, "precision is 'float16'; it must be one of float32, bfloat16"),
        ({"inner": {"segment": 12}}, "segment 12 must be a multiple of the chunk of 8 tokens"),
        ({"inner": {"truncate_chunks": 0}}, "truncate_chunks is 0; it must be at least 1"),
        ({"curriculum": [{"until": 5, "length": 8}, {"until": 5, "length": 16}]}, "until 5 must be above 5"),
        ({"model": TOY["model"] | {"num_heads": 3}}, "hidden_size 32 is no multiple of num_heads 3"),
        ({"model": TOY["model"] | {"hidden_size": 0}}, "hidden_size is 0; it must be at least 1"),
        ({"model": TOY["model"] | {"head_dim": 5}}, "head_dim 5 is odd"),
        ({"model": TOY["model"] | {"num_kv_heads": 4}}, "num_heads 2 is no multiple of num_kv_heads 4"),
        (
            {"model": TOY["model"] | {"chunk_size": 32, "window": 32}},
            "chunk_size 32 is not below the 32 tokens of a row",
        ),
        ({"model": TOY["model"] | {"titans": {"head": 1}}}, "unknown key 'head'"),
        ({"model": TOY["model"] | {"titans": {"blocks": [5]}}}, "titans: blocks must rise within 0..1, got (5,)"),
        ({"model": TOY["model"] | {"family": "titans", "levels": [LEVEL]}}, "family 'titans' has no levels"),
        ({"model": TOY["model"] | {"family": "transformer", "titans": {"memory": "mlp"}}}, "has no titans"),
        (
            {"model": TOY["model"] | {"levels": [LEVEL | {"update_period": 12}]}},
            "level 'fast': update_period 12 must be a multiple of the chunk of 8 tokens",
        ),
        (
            {"model": TOY["model"] | {"levels": [LEVEL | {"update_period": 32}]}},
            "level 'fast' is written every 32 tokens, and no row is longer than 32",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(changes: dict[str, object], message: str) -> None:
    """One line that names the recipe, the value and the rule."""
    with pytest.raises(SettingsError) as caught:
        parse(**changes)
    assert caught.value.message.startswith("recipe toy.yaml: ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_every_recipe_of_the_project_can_be_read() -> None:
    """Each has the name of its file and a configuration."""
    assert "hope-nano" in recipe_names()
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.config(4096).model.vocab_size == 4096


def test_a_recipe_that_is_no_file_or_no_yaml_is_refused(tmp_path: Path) -> None:
    """The message lists the known names, or says what is wrong with the file."""
    with pytest.raises(SettingsError, match=r"neither a known name \(.*hope-nano.*\) nor a YAML file"):
        load_recipe("none-such")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match=r"recipe bad\.yaml is not YAML"):
        load_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"recipe bytes\.yaml cannot be read"):
        load_recipe(str(tmp_path / "bytes.yaml"))


def test_the_digest_is_of_what_decides_a_step() -> None:
    """Another rate changes it; more evaluations or other seeds do not."""
    digest = recipe_digest(parse())
    assert recipe_digest(parse(eval_every=1, seeds=[5])) == digest
    assert recipe_digest(parse(optimizer={"lr": 0.1})) != digest


def test_differing_keys_are_named_by_their_path() -> None:
    """Nested keys, and keys that only one side has."""
    assert differing_keys({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}) == ["a.c", "d", "e"]
