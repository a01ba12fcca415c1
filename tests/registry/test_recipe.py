"""The recipe model: what it accepts, what it refuses, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from zoo.registry.recipe import Recipe, recipe_dict, recipe_hash
from zoo.registry.strict import dotted, problems

SMALLEST: dict[str, Any] = {
    "optimizer": {"lr": 0.001},
    "batch_size": 4,
    "crop": 64,
    "stages": [{"name": "all", "epochs": 2}],
}


def wrong(**changes: Any) -> list[str]:
    """What is said about the smallest recipe with some values changed."""
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(SMALLEST | changes)
    return [f"{dotted(place)}: {text}" for place, text in problems(caught.value, Recipe)]


def stage(**changes: Any) -> dict[str, Any]:
    return {"name": "all", "epochs": 2} | changes


def test_defaults_are_filled_in() -> None:
    assert recipe_dict(Recipe.model_validate(SMALLEST)) == {
        "loss": {"ce": 1.0},
        "class_weights": "none",
        "oversample": "none",
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01, "momentum": 0.9},
        "batch_size": 4,
        "crop": 64,
        "augment": {
            "preset": "none",
            "resize": None,
            "scale": [1.0, 1.0],
            "max_class_share": 1.0,
            "flip": 0.5,
            "flip_vertical": 0.0,
            "rotate": 0.0,
            "rotate_probability": 0.5,
            "colour": 0.0,
            "hue": 0.0,
            "blur": 0.0,
            "grayscale": 0.0,
            "cutmix": 0.0,
            "copy_paste": 0.0,
        },
        "precision": "auto",
        "channels_last": True,
        "ema": None,
        "clip_norm": None,
        "early_stop": None,
        "validate_every": 1,
        "checkpoint_minutes": 5.0,
        "workers": "auto",
        "seed": 0,
        "evidence": "none",
        "stages": [
            {
                "name": "all",
                "epochs": 2,
                "unfreeze": 1.0,
                "encoder_lr_scale": 0.1,
                "layer_decay": 1.0,
                "schedule": {
                    "kind": "constant",
                    "warmup": 0.0,
                    "power": 0.9,
                    "step_epochs": 1,
                    "gamma": 0.1,
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {}}, "loss: has too few entries, got {}"),
        ({"loss": {"ce": 0}}, "loss.ce: should be greater than 0, got 0"),
        ({"loss": {"iou": 1.0}}, "loss.iou: should be 'ce', 'dice' or 'focal', got 'iou'"),
        (
            {"class_weights": "sqrt"},
            "class_weights: should be 'none', 'log', 'inverse', 'median' or 'effective', "
            "got 'sqrt'",
        ),
        ({"optimizer": {"lr": "1"}}, "optimizer.lr: should be a number, got '1'"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: should be greater than 0, got 0"),
        ({"optimizer": {}}, "optimizer.lr: is missing"),
        (
            {"optimizer": {"lr": 1, "weight_decay": -1}},
            "optimizer.weight_decay: should be greater than or equal to 0, got -1",
        ),
        (
            {"optimizer": {"lr": 1, "momentum": 1}},
            "optimizer.momentum: should be less than 1, got 1",
        ),
        (
            {"optimizer": {"lr": 1, "name": "adam"}},
            "optimizer.name: should be 'adamw' or 'sgd', got 'adam'",
        ),
        ({"batch_size": 0}, "batch_size: should be greater than or equal to 1, got 0"),
        ({"batch_size": 8.0}, "batch_size: should be a whole number, got 8.0"),
        ({"batch_size": True}, "batch_size: should be a whole number, got True"),
        ({"crop": 0}, "crop: should be greater than or equal to 32, got 0"),
        ({"crop": 100}, "crop: should be a multiple of 32, got 100"),
        ({"augment": {"scale": [1.0]}}, "augment.scale: has too few entries, got [1.0]"),
        (
            {"augment": {"scale": [2.0, 0.5]}},
            "augment.scale: the smaller scale comes first, got [2.0, 0.5]",
        ),
        ({"augment": {"scale": [0, 1]}}, "augment.scale[0]: should be greater than 0, got 0"),
        ({"augment": {"flip": 1.5}}, "augment.flip: should be less than or equal to 1, got 1.5"),
        ({"augment": []}, "augment: should be a mapping of keys to values, got []"),
        ({"precision": 16}, "precision: should be 'fp32', 'bf16', 'fp16' or 'auto', got 16"),
        ({"channels_last": "yes"}, "channels_last: should be true or false, got 'yes'"),
        ({"ema": 1}, "ema: should be less than 1, got 1"),
        ({"clip_norm": 0}, "clip_norm: should be greater than 0, got 0"),
        ({"early_stop": {"patience": 0}}, "early_stop.patience: should be greater than or equal"),
        ({"early_stop": {"patience": 1, "metric": "loss"}}, "early_stop.metric: should be 'miou'"),
        ({"workers": -1}, "workers: should be auto or a whole number from 0, got -1"),
        ({"workers": True}, "workers: should be auto or a whole number from 0, got True"),
        (
            {"evidence": 3},
            "evidence: should be text, in quotes where it looks like a number, got 3",
        ),
        ({"stages": []}, "stages: has too few entries, got []"),
        ({"stages": 3}, "stages: should be a list, got 3"),
        ({"stages": [stage(name="1")]}, "stages[0].name: should be a letter, then letters"),
        ({"stages": [stage(epochs=0)]}, "stages[0].epochs: should be greater than or equal to 1"),
        ({"stages": [stage(unfreeze=2)]}, "stages[0].unfreeze: should be less than or equal to 1"),
        ({"stages": [stage(layer_decay=0)]}, "stages[0].layer_decay: should be greater than 0"),
        (
            {"stages": [stage(encoder_lr_scale=-1)]},
            "stages[0].encoder_lr_scale: should be greater than or equal to 0",
        ),
        (
            {"stages": [stage(schedule={"kind": "linear"})]},
            "stages[0].schedule.kind: should be 'constant', 'poly', 'cosine' or 'step'",
        ),
        (
            {"stages": [stage(schedule={"warmup": 1.0})]},
            "stages[0].schedule.warmup: should be less than 1, got 1.0",
        ),
        ({"stages": [stage(), stage()]}, "stages: stage names must differ; given twice: all"),
        (
            {"stages": [stage(unfreze=1)]},
            "stages[0].unfreze: there is no key 'unfreze'; allowed: unfreeze, name, epochs",
        ),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: should be a finite number, got nan"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: should be a finite number, got inf"),
        ({"evidence": []}, "evidence: should be text"),
        ({"epochs": "x" * 90}, "epochs: there is no key 'epochs'; allowed: loss,"),
        ({"crop": "x" * 90}, "crop: should be a whole number, got 'xxxxxxxxxx"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    found = wrong(**changes)
    assert len(found) == 1
    assert found[0].startswith(message)
    assert len(found[0]) < 300


def test_all_wrong_values_are_reported_at_once() -> None:
    assert len(wrong(crop=3, batch_size="8", ema=2, foo=1)) == 4


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(SMALLEST).crop = 128


def test_the_hash_is_that_of_the_canonical_json_of_what_is_said() -> None:
    recipe = Recipe.model_validate(SMALLEST | {"batch_size": 4, "seed": 3, "ema": 0.9})
    said = {
        "optimizer": {"lr": 0.001},
        "batch_size": 4,
        "crop": 64,
        "ema": 0.9,
        "stages": [{"name": "all", "epochs": 2}],
    }
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    assert recipe_hash(recipe) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_default_that_is_written_out_changes_no_hash() -> None:
    plain = recipe_hash(Recipe.model_validate(SMALLEST))
    written = SMALLEST | {"class_weights": "none", "augment": {"flip": 0.5}}
    assert recipe_hash(Recipe.model_validate(written)) == plain


def test_the_hash_ignores_seed_and_evidence_and_nothing_else() -> None:
    plain = recipe_hash(Recipe.model_validate(SMALLEST))
    assert recipe_hash(Recipe.model_validate(SMALLEST | {"seed": 5, "evidence": "x"})) == plain
    assert recipe_hash(Recipe.model_validate(SMALLEST | {"crop": 96})) != plain
    assert recipe_hash(Recipe.model_validate(SMALLEST | {"loss": {"ce": 1}})) == plain
