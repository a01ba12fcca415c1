"""The recipe model: what it accepts, what it refuses, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from zoo.common.schema import dotted, problems
from zoo.registry.recipe import Recipe, recipe_dict, recipe_hash

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
        "loss_options": {
            "label_smoothing": 0.0,
            "focal_gamma": 2.0,
            "focal_alpha": None,
            "tversky_alpha": 0.3,
            "tversky_beta": 0.7,
            "ohem_threshold": 0.7,
            "ohem_min_kept": 0.0625,
            "boundary_width": 3,
            "boundary_factor": 4.0,
            "no_object_weight": 0.1,
        },
        "activation": "softmax",
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
            "quarter_turns": 0.0,
            "rotate": 0.0,
            "rotate_probability": 0.5,
            "colour": 0.0,
            "hue": 0.0,
            "blur": 0.0,
            "grayscale": 0.0,
            "cutmix": 0.0,
            "copy_paste": 0.0,
        },
        "eval_scale": 1.0,
        "precision": "auto",
        "fp32_modules": [],
        "channels_last": True,
        "micro_batch": None,
        "activation_checkpointing": False,
        "batch_norm": "train",
        "dropout": 0.0,
        "drop_path": 0.0,
        "feature_views": None,
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
                "learn": "all",
                "unfreeze": 1.0,
                "unfreeze_from": None,
                "unfreeze_names": [],
                "optimizer_state": "carried",
                "encoder_lr_scale": 0.1,
                "layer_decay": 1.0,
                "schedule": {
                    "kind": "constant",
                    "warmup": 0.0,
                    "power": 0.9,
                    "step_epochs": 1,
                    "milestones": [],
                    "gamma": 0.1,
                    "cycles": 2,
                    "patience": 2,
                    "decay": 0.2,
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {}}, "loss: has too few entries, got {}"),
        ({"loss": {"ce": 0}}, "loss.ce: should be greater than 0, got 0"),
        ({"loss": {"iou": 1.0}}, "loss.iou: should be 'ce', 'dice', 'focal', 'jaccard'"),
        (
            {"class_weights": "sqrt"},
            "class_weights: should be none, log, inverse, median, effective or a list of one "
            "weight per class, got 'sqrt'",
        ),
        (
            {"class_weights": [1, -1]},
            "class_weights: a weight should be a finite number from 0, got -1",
        ),
        ({"class_weights": [1, float("inf")]}, "class_weights: a weight should be a finite number"),
        ({"class_weights": [True]}, "class_weights: a weight should be a finite number from 0"),
        ({"class_weights": [0, 0.0]}, "class_weights: at least one weight should be above 0"),
        ({"class_weights": []}, "class_weights: at least one weight should be above 0"),
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
            {"optimizer": {"lr": 1, "name": "lam"}},
            "optimizer.name: there is no optimizer 'lam'; did you mean lamb or lambw or lambc? "
            "Available: adamw, sgd, nesterov, momentum, ",
        ),
        (
            {"optimizer": {"lr": 1, "name": "adahessian", "hessian_power": 0.5}},
            "optimizer.name: adahessian needs second-order gradients, a second backward pass in "
            "each step; take adamw",
        ),
        (
            {"optimizer": {"lr": 1, "name": "bnblion"}},
            "optimizer.name: bnblion is of the package bitsandbytes; take adamw, sgd or lion",
        ),
        (
            {"optimizer": {"lr": 1, "name": "lamb", "beta": [0.9, 0.99]}},
            "optimizer.beta: there is no key 'beta'; allowed: betas, ",
        ),
        (
            {"optimizer": {"lr": 1, "name": "lion", "eps": 1e-8}},
            "optimizer.eps: there is no key 'eps'; allowed: ",
        ),
        (
            {"optimizer": {"lr": 1, "name": "adan", "betas": [0.9, 0.99]}},
            "optimizer.betas: should be a list of 3 numbers, got [0.9, 0.99]",
        ),
        (
            {"optimizer": {"lr": 1, "betas": [0.9, 1]}},
            "optimizer.betas: the numbers should be from 0 and below 1, got [0.9, 1]",
        ),
        (
            {"optimizer": {"lr": 1, "amsgrad": 1}},
            "optimizer.amsgrad: should be true or false, got 1",
        ),
        (
            {"optimizer": {"lr": 1, "eps": True}},
            "optimizer.eps: should be a finite number, got True",
        ),
        (
            {"optimizer": {"lr": 1, "eps": float("inf")}},
            "optimizer.eps: should be a finite number, got inf",
        ),
        (
            {"optimizer": {"lr": 1, "name": "muon", "ns_steps": 2.5}},
            "optimizer.ns_steps: should be a whole number from 0, got 2.5",
        ),
        (
            {"optimizer": {"lr": 1, "name": "mars", "mars_type": "sgd"}},
            "optimizer.mars_type: should be adamw or lion, got 'sgd'",
        ),
        (
            {"optimizer": {"lr": 1, "name": "lamb", "momentum": 0.5}},
            "optimizer: lamb has no momentum; leave momentum at 0.9",
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
        (
            {"augment": {"resize": 4097}},
            "augment.resize: should be less than or equal to 4096, got 4097",
        ),
        ({"eval_scale": 0}, "eval_scale: should be greater than or equal to 0.1, got 0"),
        ({"eval_scale": 11}, "eval_scale: should be less than or equal to 10, got 11"),
        ({"augment": []}, "augment: should be a mapping of keys to values, got []"),
        ({"precision": 16}, "precision: should be 'fp32', 'bf16', 'fp16' or 'auto', got 16"),
        ({"channels_last": "yes"}, "channels_last: should be true or false, got 'yes'"),
        ({"ema": 1}, "ema: should be less than 1, got 1"),
        ({"clip_norm": 0}, "clip_norm: should be greater than 0, got 0"),
        ({"early_stop": {"patience": 0}}, "early_stop.patience: should be greater than or equal"),
        ({"early_stop": {"patience": 1, "metric": "loss"}}, "early_stop.metric: should be 'miou'"),
        ({"workers": -1}, "workers: should be auto or a whole number from 0 to 256, got -1"),
        ({"workers": True}, "workers: should be auto or a whole number from 0 to 256, got True"),
        ({"workers": 257}, "workers: should be auto or a whole number from 0 to 256, got 257"),
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
            "stages[0].schedule.kind: should be 'constant', 'step', 'multistep', 'poly', 'cosine'",
        ),
        (
            {"stages": [stage(schedule={"warmup": 1.0})]},
            "stages[0].schedule.warmup: should be less than 1, got 1.0",
        ),
        ({"stages": [stage(), stage()]}, "stages: stage names must differ; given twice: all"),
        (
            {"stages": [stage(unfreze=1)]},
            "stages[0].unfreze: there is no key 'unfreze'; allowed: unfreeze, unfreeze_",
        ),
        (
            {"stages": [stage(schedule={"kind": "multistep"})]},
            "stages[0].schedule: multistep needs milestones, for example [0.6, 0.85]",
        ),
        (
            {"stages": [stage(schedule={"kind": "multistep", "milestones": [0.5, 0.2]})]},
            "stages[0].schedule: the milestones should rise, got [0.5, 0.2]",
        ),
        (
            {"stages": [stage(schedule={"kind": "multistep", "milestones": [1.5]})]},
            "stages[0].schedule.milestones[0]: should be less than 1, got 1.5",
        ),
        (
            {"stages": [stage(schedule={"kind": "plateau", "gamma": 1.0})]},
            "stages[0].schedule: plateau needs a gamma below 1",
        ),
        (
            {"stages": [stage(schedule={"kind": "cosine_restarts", "cycles": 4})]},
            "stages[0].schedule: the last of 4 cycles would peak at or below 0.001 of the rate",
        ),
        (
            {"stages": [stage(schedule={"kind": "step", "step_epochs": 2})]},
            "stages[0]: schedule.step_epochs is 2, the stage has 2 epochs: the rate would never",
        ),
        (
            {"stages": [stage(schedule={"kind": "step", "warmup": 0.6})]},
            "stages[0]: schedule.step_epochs is 1, the stage has 2 epochs after a warm-up of 0.6",
        ),
        (
            {"stages": [stage(schedule={"kind": "multistep", "milestones": [0.1], "warmup": 0.2})]},
            "stages[0]: schedule.milestones begin at 0.1 of the stage, within its warm-up of 0.2",
        ),
        (
            {"stages": [stage(schedule={"kind": "plateau"})]},
            "stages: all: the plateau's patience of 2 validations needs a stage of at least 4 "
            "epochs (validate_every is 1), it has 2",
        ),
        (
            {"stages": [stage(epochs=6, schedule={"kind": "plateau"})], "validate_every": 2},
            "stages: all: the plateau's patience of 2 validations needs a stage of at least 7",
        ),
        (
            {"stages": [stage(learn="head", unfreeze_names=["a"])]},
            "stages[0]: learn: head freezes the encoder; take unfreeze_names out",
        ),
        (
            {"stages": [stage(unfreeze_from=0.5, unfreeze=0.5)]},
            "stages[0]: unfreeze_from should be below unfreeze (0.5), got 0.5",
        ),
        (
            {"stages": [stage(unfreeze_from=0.0, epochs=1)]},
            "stages[0]: unfreeze_from needs a stage of at least 2 epochs",
        ),
        (
            {"stages": [stage(unfreeze_from=0.0, unfreeze_names=["a"])]},
            "stages[0]: give unfreeze_from or unfreeze_names, not both",
        ),
        (
            {"stages": [stage(schedule={"kind": "wsd", "warmup": 0.5, "decay": 0.6})]},
            "stages[0]: schedule.warmup of 0.5 and schedule.decay of 0.6 take more than the stage;",
        ),
        ({"dropout": 1.0}, "dropout: should be less than 1, got 1.0"),
        ({"batch_norm": "sync"}, "batch_norm: should be 'train', 'frozen' or 'group', got 'sync'"),
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


def test_an_optimizer_is_what_it_is_given_besides_its_defaults() -> None:
    def made(**settings: Any) -> Recipe:
        return Recipe.model_validate(SMALLEST | {"optimizer": {"lr": 1, **settings}})

    lamb = made(name="lamb", betas=[0.9, 0.999], max_grad_norm=1, caution=False)
    assert lamb == made(name="lamb")
    assert recipe_hash(lamb) == recipe_hash(made(name="lamb")) != recipe_hash(made())
    changed = made(name="lamb", max_grad_norm=2, betas=(0.8, 0.9))
    assert recipe_dict(changed)["optimizer"] == {
        "name": "lamb", "lr": 1.0, "weight_decay": 0.01, "momentum": 0.9, "max_grad_norm": 2.0,
        "betas": [0.8, 0.9],
    }  # fmt: skip
    assert Recipe.model_validate(recipe_dict(changed)) == changed
    assert recipe_hash(changed) not in (recipe_hash(lamb), recipe_hash(made()))
    assert changed.optimizer.arguments == {"max_grad_norm": 2.0, "betas": [0.8, 0.9]}


def test_class_weights_of_ones_own_are_numbers_in_recipe_and_hash() -> None:
    whole = Recipe.model_validate(SMALLEST | {"class_weights": [1, 2, 5]})
    assert recipe_dict(whole)["class_weights"] == [1.0, 2.0, 5.0]
    decimal = Recipe.model_validate(SMALLEST | {"class_weights": [1.0, 2.0, 5.0]})
    assert (
        recipe_hash(whole) == recipe_hash(decimal) != recipe_hash(Recipe.model_validate(SMALLEST))
    )


def test_the_hash_ignores_seed_and_evidence_and_nothing_else() -> None:
    plain = recipe_hash(Recipe.model_validate(SMALLEST))
    assert recipe_hash(Recipe.model_validate(SMALLEST | {"seed": 5, "evidence": "x"})) == plain
    assert recipe_hash(Recipe.model_validate(SMALLEST | {"crop": 96})) != plain
    assert recipe_hash(Recipe.model_validate(SMALLEST | {"loss": {"ce": 1}})) == plain


def test_all_that_is_wrong_with_a_stage_is_said_at_once() -> None:
    (found,) = wrong(stages=[stage(epochs=1, unfreeze_from=1.0, schedule={"kind": "step"})])
    assert len(found.removeprefix("stages[0]: ").split("; ")) == 4  # one sentence has a `;` itself


def test_values_at_the_edge_are_taken() -> None:
    stages = [
        stage(name="a", epochs=4, schedule={"kind": "plateau"}),
        stage(name="b", schedule={"kind": "step"}),
        stage(name="c", unfreeze_from=0.0),
        stage(name="d", schedule={"kind": "cosine_restarts", "cycles": 3}),
    ]
    assert len(Recipe.model_validate(SMALLEST | {"stages": stages}).stages) == 4
