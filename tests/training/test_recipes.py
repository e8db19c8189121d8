"""Recipes: what is read, what is refused, and what `preset: official` flips."""

from __future__ import annotations

import pytest

from internvl.training.recipes import load_recipe, parse_recipe

BASE = {"model": "demo", "data": "meta.json", "steps": 10}


def parsed(**changes):
    return parse_recipe({**BASE, **changes})


def test_values_within_values_are_read():
    recipe = parsed(
        stage=1.5, optimizer={"lr": "1e-5", "betas": [0.9, 0.98]}, packing={"rule": "best_fit"},
        lora=None, frames=[4, 8], evaluation={"data": "held_out.json"},
    )  # fmt: skip
    assert recipe.stage.train == ("vit", "mlp")
    assert recipe.optimizer.lr == 1e-5
    assert recipe.optimizer.betas == (0.9, 0.98)
    assert recipe.stream.rule == "best_fit"
    assert recipe.examples.min_frames == 4
    assert recipe.evaluation.every == 500
    assert parsed(stage={"train": ["llm"]}).stage.train == ("llm",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1}, "unknown keys.*lerning_rate"),
        ({"optimizer": {"lr": "fast"}}, "recipe.optimizer.lr is 'fast'"),
        ({"optimizer": {"lr": 0}}, "expected more than 0"),
        ({"stage": "3"}, "stage is '3'"),
        ({"batch": "many"}, "recipe.batch is 'many'"),
        ({"batch": True}, "recipe.batch is True"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": None}, "one of tokens, steps and epochs"),
        ({"tokens": 1e9}, "one of tokens, steps and epochs"),
        ({"loss": "cube"}, "expected one of"),
        ({"preset": "paper"}, "expected one of"),
        ({"frames": [1]}, "expected 2 values"),
        ({"lora": {}, "ema": 0.9}, "ema averages whole weights"),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else None,
)
def test_nonsense_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        parsed(**changes)


def test_official_flips_every_difference():
    report, official = parsed(), parsed(preset="official")
    assert (report.weigh.per, official.weigh.per) == ("response", "conversation")
    assert (report.examples.jpeg_per, official.examples.jpeg_per) == ("image", "tile")
    assert (report.stream.rule, official.stream.rule) == ("report", "official")
    assert (report.stream.over_length, official.stream.over_length) == ("cut", "truncate")
    assert (report.repeat, official.repeat) == ("sampled", "official")


def test_official_values_of_a_recipe_hold_only_for_that_preset():
    official = {"optimizer": {"lr": 2e-4}}
    assert parsed(optimizer={"lr": 2e-5}, official=official).optimizer.lr == 2e-5
    flipped = parsed(optimizer={"lr": 2e-5, "eps": 1e-6}, official=official, preset="official")
    assert flipped.optimizer.lr == 2e-4
    assert flipped.optimizer.eps == 1e-6


def test_a_file_is_read_with_changes(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    path = tmp_path / "recipe.yaml"
    path.write_text("model: org/name\ndata: meta.json\ntokens: 76e9\noptimizer: {lr: 1e-5}\n")
    recipe = load_recipe(path, {"optimizer.weight_decay": 0.01, "tokens": None, "steps": 3})
    assert recipe.data == str(tmp_path / "meta.json")
    assert recipe.model == "org/name"
    assert (recipe.steps, recipe.tokens) == (3, None)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-5, 0.01)
    with pytest.raises(ValueError, match=r"recipe.yaml: .*unknown"):
        load_recipe(path, {"nonsense": 1})
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="is no recipe"):
        load_recipe(tmp_path / "list.yaml")
