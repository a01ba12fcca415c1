"""A training recipe: what a run does, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

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


def _ordered(scale: list[float]) -> list[float]:
    if scale[0] > scale[1]:
        raise ValueError(f"the smaller scale comes first, got {scale}")
    return scale


class Augment(Strict):
    """Random changes of the training images.

    `scale` is the range of the resize factor before the crop, `flip` the probability of a
    horizontal flip, `colour` the strength of brightness, contrast and saturation changes.
    """

    scale: Annotated[
        list[Positive], Field(min_length=2, max_length=2), AfterValidator(_ordered)
    ] = Field(default_factory=lambda: [1.0, 1.0])
    flip: Share = 0.5
    colour: Share = 0.0


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
    class_weights: Literal["none", "log"] = "none"
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
    """16 hexadecimal digits that name what the recipe does; `seed` and `evidence` do not count."""
    return hash_of(recipe.model_dump(mode="json", exclude={"seed", "evidence"}))
