"""Recipe overrides: what each form does, worked out by hand, and every refusal."""

from __future__ import annotations

import pytest

from zoo.common.errors import InputError
from zoo.registry.overrides import apply_overrides, model_options, parse_overrides
from zoo.registry.recipe import Recipe, recipe_dict

RECIPE = Recipe.model_validate(
    {
        "loss": {"ce": 1.0, "dice": 1.0},
        "optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 0.5},
        "batch_size": 4,
        "crop": 64,
        "ema": 0.9,
        "stages": [
            {"name": "head", "epochs": 1, "unfreeze": 0.0},
            {"name": "all", "epochs": 9, "schedule": {"kind": "poly", "power": 2.0}},
        ],
    }
)


def changed(*overrides: str) -> dict[str, object]:
    """The top-level keys that the overrides changed."""
    before, after = recipe_dict(RECIPE), recipe_dict(apply_overrides(RECIPE, overrides))
    return {key: value for key, value in after.items() if value != before[key]}


def test_no_override_changes_nothing() -> None:
    assert apply_overrides(RECIPE, []) == RECIPE


def test_plain_values_are_yaml() -> None:
    assert changed("crop=96", "ema=null", "class_weights=log", "channels_last=false") == {
        "crop": 96,
        "ema": None,
        "class_weights": "log",
        "channels_last": False,
    }


def test_one_key_of_a_section_leaves_the_others() -> None:
    assert changed("optimizer.lr=2e-3") == {
        "optimizer": {"name": "sgd", "lr": 0.002, "weight_decay": 0.5, "momentum": 0.9}
    }
    assert changed("loss.focal=2") == {"loss": {"ce": 1.0, "dice": 1.0, "focal": 2.0}}


def test_a_mapping_replaces_a_section_whole() -> None:
    assert changed("optimizer={lr: 0.1}") == {
        "optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
    }
    assert changed("loss={focal: 1}") == {"loss": {"focal": 1.0}}


def test_stages_are_edited_by_name_or_replaced_whole() -> None:
    after = apply_overrides(RECIPE, ["stages.head.epochs=3", "stages.all.schedule.warmup=0.25"])
    assert [stage.epochs for stage in after.stages] == [3, 9]
    assert after.stages[1].schedule.model_dump() == {
        "kind": "poly",
        "warmup": 0.25,
        "power": 2.0,
        "step_epochs": 1,
        "milestones": [],
        "gamma": 0.1,
        "cycles": 2,
        "patience": 2,
        "decay": 0.2,
    }
    whole = apply_overrides(RECIPE, ["stages=[{name: one, epochs: 2}]", "stages.one.unfreeze=0.5"])
    assert [(s.name, s.epochs, s.unfreeze) for s in whole.stages] == [("one", 2, 0.5)]


def test_a_schedule_is_replaced_whole() -> None:
    after = apply_overrides(RECIPE, ["stages.all.schedule={kind: cosine}"])
    assert after.stages[1].schedule.kind == "cosine"
    assert after.stages[1].schedule.power == 0.9


def test_a_section_that_is_off_is_switched_on_by_its_key() -> None:
    assert changed("early_stop.patience=3") == {"early_stop": {"metric": "miou", "patience": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crop", "'crop' is not key=value; for no value write key=null"),
        ("=3", "'=3' is not key=value"),
        ("ema=", "'ema=' is not key=value; for no value write key=null"),
        ("optimizer=[", "optimizer is not valid YAML: while parsing"),
        ("cropp=3", "cropp: there is no key 'cropp'; allowed: crop, drop_path,"),
        ("lr=1", "lr: there is no key 'lr'; did you mean optimizer.lr?"),
        (
            "epochs=1",
            "epochs: there is no key 'epochs'; did you mean stages.head.epochs or "
            "stages.all.epochs?",
        ),
        ("optimiser.lr=1", "optimiser.lr: there is no key 'optimiser'; allowed: optimizer, loss"),
        (
            "optimizer.lrr=1",
            "optimizer.lrr: there is no key 'lrr'; allowed: lr, name, weight_decay, momentum",
        ),
        ("optimizer.lr=big", "optimizer.lr: should be a number, got 'big'"),
        ("crop.x=1", "crop.x: crop has no keys of its own; write crop=VALUE"),
        ("ema.x=1", "ema.x: ema has no keys of its own; write ema=VALUE"),
        ("crop=100", "crop: should be a multiple of 32, got 100"),
        ("batch_size='8'", "batch_size: should be a whole number, got '8'"),
        ("precision=fp8", "precision: should be 'fp32', 'bf16', 'fp16' or 'auto', got 'fp8'"),
        ("loss=3", "loss: should be a mapping of keys to values, got 3"),
        ("early_stop=3", "early_stop: should be a mapping of keys to values, got 3"),
        (
            "stages.haed.epochs=1",
            "stages.haed.epochs: Unknown stage 'haed'. Did you mean head? Available: head, all.",
        ),
        (
            "stages.head=1",
            "stages.head: write stages.head.KEY=VALUE, or stages=[...] to replace all stages",
        ),
        ("stages.head.epochs=0", "stages.head.epochs: should be greater than or equal to 1, got 0"),
        (
            "stages.all.schedule.kid=poly",
            "stages.all.schedule.kid: there is no key 'kid'; allowed: kind, warmup, power,",
        ),
        ("stages.all.name=head", "stages: stage names must differ; given twice: head"),
        ("stages=[3]", "stages.0: should be a mapping of keys to values, got 3"),
        ("stages=all", "stages: should be a list, got 'all'"),
        ("stages=[{epochs: 1}]", "stages.0.name: is missing"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides(RECIPE, [override])
    header, *lines = str(caught.value).splitlines()
    assert header == "These recipe overrides cannot be used:"
    assert len(lines) == 1
    assert lines[0].startswith(f"  - {message}")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="crop is given twice"):
        apply_overrides(RECIPE, ["crop=64", "crop=96"])


def test_all_wrong_overrides_are_reported_at_once() -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides(RECIPE, ["crop=3", "x", "stages.foo.epochs=1", "lr=1", "seed=1"])
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize("start", ["stages=[{epochs: 1}]", "stages=3", "stages=[3]"])
def test_overrides_on_top_of_a_broken_one_do_not_fail_otherwise(start: str) -> None:
    with pytest.raises(InputError):
        apply_overrides(RECIPE, [start, "stages.all.epochs=1", "epochs=1"])


def test_the_recipe_itself_stays_as_it_was() -> None:
    before = recipe_dict(RECIPE)
    apply_overrides(RECIPE, ["loss.ce=3", "stages.all.epochs=1"])
    assert recipe_dict(RECIPE) == before


def test_overrides_as_a_mapping() -> None:
    assert parse_overrides(["optimizer.lr=2e-3", "loss={ce: 1}", "ema=null"]) == {
        "optimizer.lr": 0.002,
        "loss": {"ce": 1},
        "ema": None,
    }


def test_overrides_of_the_model_are_its_options_and_leave_the_recipe_alone() -> None:
    given = ["crop=96", "model.decoder_channels=[64, 32]", "model.a.b=1", "model.a.c={d: x}"]
    assert model_options(given) == {"decoder_channels": [64, 32], "a": {"b": 1, "c": {"d": "x"}}}
    assert changed(*given) == {"crop": 96}
    assert parse_overrides(given)["model.decoder_channels"] == [64, 32]
    with pytest.raises(InputError, match=r"model\.x is given twice"):
        apply_overrides(RECIPE, ["model.x=1", "model.x=2"])
    parts = ["model.encoder_args.patch_size=8", "model.encoder_args.qk_norm=true"]
    whole = ["model.encoder_args={patch_size: 8, qk_norm: true}"]
    mixed = ["model.encoder_args={patch_size: 8}", parts[1]]
    for same in (parts, whole, mixed):
        assert model_options(same) == {"encoder_args": {"patch_size": 8, "qk_norm": True}}
        assert parse_overrides(same) == {
            "model.encoder_args.patch_size": 8,
            "model.encoder_args.qk_norm": True,
        }
    for lost in (parts[:1] + whole, whole + parts[:1]):
        with pytest.raises(
            InputError, match=f"{lost[1][:18]}.* is given twice, whole and in parts"
        ):
            model_options(lost)


def test_what_cannot_be_an_option_of_the_model() -> None:
    given = [
        "model=3",
        "model.=3",
        "model.classes=3",
        "model.a=3",
        "model.a.b=1",
        "model.img_size=9",
        "model.encoder_args.img_size=9",
    ]
    with pytest.raises(InputError) as caught:
        model_options(given)
    assert str(caught.value).splitlines() == [
        "These options of the model cannot be used:",
        "  - model: write model.KEY=VALUE, such as model.decoder_channels=[64, 32]",
        "  - model.: write model.KEY=VALUE, such as model.decoder_channels=[64, 32]",
        "  - model.classes: the data give the classes",
        "  - model.a.b: model.a is given a value of its own too",
        "  - model.img_size: the encoder is built for the recipe's crop: write crop=PIXELS",
        "  - model.encoder_args.img_size: the encoder is built for the recipe's crop: write "
        "crop=PIXELS",
    ]
