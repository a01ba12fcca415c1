"""A training recipe: what a run does, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from zoo.files import hash_of
from zoo.registry.strict import Strict, written_as

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Optimizer(Strict):
    """The optimizer; `lr` is the decoder's peak learning rate, `momentum` is for sgd alone."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    weight_decay: NotNegative = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class Schedule(Strict):
    """How the learning rate moves within a stage; `warmup` is a share of the stage's steps.

    `power` is for poly; `step_epochs` and `gamma` are for step: the rate is multiplied by `gamma`
    after every `step_epochs` epochs.
    """

    kind: Literal["constant", "poly", "cosine", "step"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    power: Positive = 0.9
    step_epochs: Count = 1
    gamma: PositiveShare = 0.1


class Stage(Strict):
    """A number of epochs in which one share of the encoder learns.

    `unfreeze` is the share of encoder layers, counted from the top, that learn; a layer `d` below
    the top learns at `encoder_lr_scale * layer_decay**d` of the decoder's rate.
    """

    name: Annotated[
        str, written_as("[A-Za-z][A-Za-z0-9_-]*", "a letter, then letters, digits, _ or -")
    ]
    epochs: Count
    unfreeze: Share = 1.0
    encoder_lr_scale: NotNegative = 0.1
    layer_decay: PositiveShare = 1.0
    schedule: Schedule = Schedule()


LossName = Literal["ce", "dice", "focal"]


def _cross_entropy() -> dict[LossName, float]:
    return {"ce": 1.0}


def _workers(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 0):
        return value
    raise ValueError(f"should be auto or a whole number from 0, got {value!r}")


def _oversample(value: object) -> object:
    if value in ("none", "rare"):
        return value
    if type(value) in (int, float) and 0 < float(str(value)) <= 1:
        return value
    raise ValueError(f"should be none, rare or a number above 0, up to 1, got {value!r}")


def _ordered(scale: list[float]) -> list[float]:
    if scale[0] > scale[1]:
        raise ValueError(f"the smaller scale comes first, got {scale}")
    return scale


PRESETS: dict[str, dict[str, Any]] = {
    "light": {
        "scale": [0.75, 1.5], "max_class_share": 1.0,
        "flip": 0.5, "flip_vertical": 0.0, "rotate": 0.0, "rotate_probability": 0.5,
        "colour": 0.2, "hue": 0.0, "blur": 0.0, "grayscale": 0.0,
        "cutmix": 0.0, "copy_paste": 0.0,
    },
    "medium": {
        "scale": [0.5, 2.0], "max_class_share": 0.75,
        "flip": 0.5, "flip_vertical": 0.0, "rotate": 10.0, "rotate_probability": 0.3,
        "colour": 0.4, "hue": 0.0, "blur": 0.1, "grayscale": 0.0,
        "cutmix": 0.0, "copy_paste": 0.0,
    },
    "strong": {
        "scale": [0.5, 2.0], "max_class_share": 0.75,
        "flip": 0.5, "flip_vertical": 0.0, "rotate": 20.0, "rotate_probability": 0.5,
        "colour": 0.5, "hue": 0.05, "blur": 0.2, "grayscale": 0.1,
        "cutmix": 0.3, "copy_paste": 0.5,
    },
}  # fmt: skip
"""What `augment.preset` stands for. Every preset names the same keys."""
PRESET_KEYS = tuple(PRESETS["light"])


class Augment(Strict):
    """Random changes of the training images; docs/augmentation.md shows what each key does.

    `flip`, `flip_vertical`, `rotate_probability`, `blur`, `grayscale`, `cutmix` and `copy_paste`
    are probabilities, `colour` and `hue` strengths, `scale` is the range of the resize factor,
    `resize` the shorter side in pixels before that factor, `rotate` the largest angle in degrees
    to either side, `max_class_share` the share of the labelled pixels of a crop that one class
    should not exceed. Values given beside a `preset` take the place of the preset's own.
    """

    preset: Literal["none", "light", "medium", "strong"] = "none"
    resize: Count | None = None
    scale: Annotated[
        list[Positive], Field(min_length=2, max_length=2), AfterValidator(_ordered)
    ] = Field(default_factory=lambda: [1.0, 1.0])
    max_class_share: PositiveShare = 1.0
    flip: Share = 0.5
    flip_vertical: Share = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    rotate_probability: Share = 0.5
    colour: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    blur: Share = 0.0
    grayscale: Share = 0.0
    cutmix: Share = 0.0
    copy_paste: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: object) -> object:
        """Add the values of the preset that are not given otherwise."""
        if isinstance(values, dict) and isinstance(preset := values.get("preset"), str):
            return PRESETS.get(preset, {}) | values
        return values


class EarlyStop(Strict):
    """Stop when `metric` on the validation split has not improved for `patience` validations."""

    metric: Literal["miou"] = "miou"
    patience: Count


def _names_differ(stages: list[Stage]) -> list[Stage]:
    names = [stage.name for stage in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"stage names must differ; given twice: {', '.join(twice)}")
    return stages


class Recipe(Strict):
    """Everything that decides how a model is trained; docs/recipes.md has every key and unit."""

    loss: Annotated[dict[LossName, Positive], Field(min_length=1)] = Field(
        default_factory=_cross_entropy
    )
    class_weights: Literal["none", "log", "inverse", "median", "effective"] = "none"
    oversample: Annotated[float | Literal["none", "rare"], PlainValidator(_oversample)] = "none"
    optimizer: Optimizer
    batch_size: Count
    crop: Annotated[int, Field(ge=32, multiple_of=32)]
    augment: Augment = Augment()
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    channels_last: bool = True
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Positive | None = None
    early_stop: EarlyStop | None = None
    validate_every: Count = 1
    checkpoint_minutes: Positive = 5.0
    workers: Annotated[int | Literal["auto"], PlainValidator(_workers)] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    evidence: Annotated[str, Field(min_length=1)] = "none"
    stages: Annotated[list[Stage], Field(min_length=1), AfterValidator(_names_differ)]


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, every default filled in."""
    return recipe.model_dump(mode="json")


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits that name what the recipe does.

    `seed` and `evidence` do not count, nor do keys at their defaults, so that a key which is added
    later changes no hash. A default must therefore never change its value.
    """
    said = recipe.model_dump(mode="json", exclude={"seed", "evidence"}, exclude_defaults=True)
    return hash_of(said)
