"""A training recipe: what a run does, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from zoo.common.files import hash_of
from zoo.common.schema import Strict, unknown_key, written_as
from zoo.registry.encoders import MAX_SIDE
from zoo.registry.losses import LOSSES, LossOption
from zoo.registry.optimizers import (
    OPTIMIZERS,
    checked_argument,
    is_default,
    known_optimizer,
    own_arguments,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
InputScale = Annotated[float, Field(ge=0.1, le=10)]
"""A factor on both sides of an image."""


class _Given(NamedTuple):
    """An argument of an optimizer on its way from the recipe to its check."""

    optimizer: str
    key: str
    value: object


def _own_argument(given: object) -> object:
    """The checked value of an optimizer's own argument."""
    if not isinstance(given, _Given):
        return given  # the optimizer's name is wrong, which says enough
    defaults = own_arguments(given.optimizer)
    if given.key not in defaults:
        raise ValueError(unknown_key(given.key, [*Optimizer.model_fields, *defaults]))
    return checked_argument(given.key, given.value, defaults[given.key])


class Optimizer(Strict):
    """The optimizer, by timm's name, and its own arguments as further keys.

    `lr` is the decoder's peak learning rate. `momentum` is for those that have one. An argument
    that is given at its default is left out, so that it changes no hash.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, PlainValidator(_own_argument)]]

    name: Annotated[str, AfterValidator(known_optimizer)] = "adamw"
    lr: Positive
    weight_decay: NotNegative = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @model_validator(mode="before")
    @classmethod
    def _collect_arguments(cls, values: object) -> object:
        """Pair every own argument with the optimizer's name, by which it is checked."""
        name = values.get("name", "adamw") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(name, str) or name not in OPTIMIZERS:
            return values
        kept: dict[Any, object] = {}
        for key, value in values.items():
            if key in cls.model_fields or not isinstance(key, str):
                kept[key] = value
            elif not is_default(name, key, value):
                kept[key] = _Given(name, key, value)
        return kept

    @model_validator(mode="after")
    def _momentum_is_taken(self) -> Self:
        # adamw has always ignored it
        if self.momentum != 0.9 and self.name != "adamw" and not OPTIMIZERS[self.name].momentum:
            raise ValueError(f"{self.name} has no momentum; leave momentum at 0.9")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The own arguments that are given, each other than its default."""
        return dict(self.__pydantic_extra__ or {})


ScheduleKind = Literal[
    "constant", "step", "multistep", "poly", "cosine", "cosine_restarts", "wsd", "one_cycle",
    "plateau",
]  # fmt: skip


FLOOR = 1e-3
"""The fraction of the peak rate at which poly, the cosines and wsd end."""


class Schedule(Strict):
    """How the learning rate moves within a stage; `warmup` is a fraction of its steps.

    `power` is for poly. step multiplies the rate by `gamma` after every `step_epochs` epochs,
    multistep at each of `milestones` (fractions of the stage), plateau after `patience` validations
    without a better mIoU. cosine_restarts falls `cycles` times, each peak `gamma` times the last.
    wsd stays at the peak until the last fraction `decay` of the stage, in which it falls.
    For one_cycle `warmup` is the length of the rise; 0 stands for 0.3 there.
    """

    kind: ScheduleKind = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    power: Positive = 0.9
    step_epochs: Count = 1
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=list)
    gamma: PositiveFraction = 0.1
    cycles: Annotated[int, Field(ge=2)] = 2
    patience: Count = 2
    decay: PositiveFraction = 0.2

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.kind == "multistep" and not self.milestones:
            raise ValueError("multistep needs milestones, for example [0.6, 0.85]")
        if self.kind == "multistep" and self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"the milestones should rise, got {self.milestones}")
        if self.kind == "plateau" and self.gamma == 1:
            raise ValueError("plateau needs a gamma below 1")
        if self.kind == "cosine_restarts" and round(self.gamma ** (self.cycles - 1), 12) <= FLOOR:
            raise ValueError(
                f"the last of {self.cycles} cycles would peak at or below {FLOOR} of the rate, "
                f"where each one ends; raise gamma (now {self.gamma}) or lower cycles"
            )
        return self


class Stage(Strict):
    """A number of epochs in which one fraction of the encoder learns.

    `unfreeze` is the fraction of encoder layers, counted from the top, that learn; a layer `d`
    below the top learns at `encoder_lr_scale * layer_decay**d` of the decoder's rate. With
    `unfreeze_from` the fraction grows from there to `unfreeze`, epoch by epoch; `unfreeze_names`
    are patterns of timm's parameter names that replace the fraction. `learn` restricts the stage to
    the decoder or to the segmentation head. `optimizer_state` of the stage before is carried over,
    or the optimizer starts fresh.
    """

    name: Annotated[
        str, written_as("[A-Za-z][A-Za-z0-9_-]*", "a letter, then letters, digits, _ or -")
    ]
    epochs: Count
    learn: Literal["all", "decoder", "head"] = "all"
    unfreeze: Fraction = 1.0
    unfreeze_from: Fraction | None = None
    unfreeze_names: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    optimizer_state: Literal["carried", "fresh"] = "carried"
    encoder_lr_scale: NotNegative = 0.1
    layer_decay: PositiveFraction = 1.0
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        # what learns
        wrong = []
        grows = self.unfreeze_from is not None
        if self.learn != "all" and (grows or self.unfreeze_names):
            key = "unfreeze_from" if grows else "unfreeze_names"
            wrong.append(f"learn: {self.learn} freezes the encoder; take {key} out")
        if grows and self.unfreeze_names:
            wrong.append("give unfreeze_from or unfreeze_names, not both")
        if self.unfreeze_from is not None and self.unfreeze_from >= self.unfreeze:
            wrong.append(
                f"unfreeze_from should be below unfreeze ({self.unfreeze}), "
                f"got {self.unfreeze_from}"
            )
        if grows and self.epochs < 2:
            wrong.append("unfreeze_from needs a stage of at least 2 epochs")

        # whether the schedule fits into the stage
        plan = self.schedule
        if plan.kind == "step" and plan.step_epochs >= self.epochs * (1 - plan.warmup):
            warmup = f" after a warm-up of {plan.warmup:g}" if plan.warmup else ""
            wrong.append(
                f"schedule.step_epochs is {plan.step_epochs}, the stage has {self.epochs} epochs"
                f"{warmup}: the rate would never change; lower step_epochs or raise epochs"
            )
        if plan.kind == "multistep" and plan.milestones[0] <= plan.warmup:
            wrong.append(
                f"schedule.milestones begin at {plan.milestones[0]:g} of the stage, within its "
                f"warm-up of {plan.warmup:g}; shorten the warm-up or move the milestone"
            )
        if plan.kind == "wsd" and plan.warmup + plan.decay > 1:
            wrong.append(
                f"schedule.warmup of {plan.warmup:g} and schedule.decay of {plan.decay:g} take "
                "more than the stage; lower one of them"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def _option(option: LossOption) -> tuple[Any, Any]:
    """The type and the default of one key of `loss_options`."""
    bounds = Field(
        gt=option.above,
        ge=option.at_least,
        lt=option.below,
        le=option.at_most,
        allow_inf_nan=None if option.whole else False,
        description=option.meaning,
    )
    kind: Any = Annotated[int if option.whole else float, bounds]
    return (kind | None if option.default is None else kind), option.default


if TYPE_CHECKING:
    LossName = str

    class LossOptions(Strict):
        """Settings of the single losses: a key for each option in `zoo.registry.losses`."""

        def __init__(self, **options: float | None): ...
        def __getattr__(self, name: str) -> Any: ...

else:
    LossName = Literal[tuple(LOSSES)]
    LossOptions = create_model(
        "LossOptions",
        __base__=Strict,
        __doc__="Settings of the single losses: a key for each option in `zoo.registry.losses`.",
        **{one.key: _option(one) for row in LOSSES.values() for one in row.options},
    )


MAX_LOADER_WORKERS = 256


def _workers(value: object) -> object:
    if value == "auto" or (type(value) is int and 0 <= value <= MAX_LOADER_WORKERS):
        return value
    raise ValueError(
        f"should be auto or a whole number from 0 to {MAX_LOADER_WORKERS}, got {value!r}"
    )


def _oversample(value: object) -> object:
    if value in ("none", "rare"):
        return value
    if type(value) in (int, float) and 0 < float(str(value)) <= 1:
        return value
    raise ValueError(f"should be none, rare or a number above 0, up to 1, got {value!r}")


WEIGHT_RULES = ("none", "log", "inverse", "median", "effective")
"""Rules that make class weights of the labels; the formulas are in `zoo.data.inspect.imbalance`."""


def _class_weights(value: object) -> object:
    if isinstance(value, str) and value in WEIGHT_RULES:
        return value
    names = ", ".join(WEIGHT_RULES)
    if not isinstance(value, list):
        raise ValueError(f"should be {names} or a list of one weight per class, got {value!r}")
    for weight in value:
        if type(weight) not in (int, float) or not 0 <= weight < math.inf:
            raise ValueError(f"a weight should be a finite number from 0, got {weight!r}")
    if not any(value):
        raise ValueError("at least one weight should be above 0")
    return [float(weight) for weight in value]


def _ordered(scale: list[float]) -> list[float]:
    if scale[0] > scale[1]:
        raise ValueError(f"the smaller scale comes first, got {scale}")
    return scale


PRESETS: dict[str, dict[str, Any]] = {
    "light": {
        "scale": [0.75, 1.5], "max_class_share": 1.0,
        "flip": 0.5, "flip_vertical": 0.0, "quarter_turns": 0.0,
        "rotate": 0.0, "rotate_probability": 0.5,
        "colour": 0.2, "hue": 0.0, "blur": 0.0, "grayscale": 0.0,
        "cutmix": 0.0, "copy_paste": 0.0,
    },
    "medium": {
        "scale": [0.5, 2.0], "max_class_share": 0.75,
        "flip": 0.5, "flip_vertical": 0.0, "quarter_turns": 0.0,
        "rotate": 10.0, "rotate_probability": 0.3,
        "colour": 0.4, "hue": 0.0, "blur": 0.1, "grayscale": 0.0,
        "cutmix": 0.0, "copy_paste": 0.0,
    },
    "strong": {
        "scale": [0.5, 2.0], "max_class_share": 0.75,
        "flip": 0.5, "flip_vertical": 0.0, "quarter_turns": 0.0,
        "rotate": 20.0, "rotate_probability": 0.5,
        "colour": 0.5, "hue": 0.05, "blur": 0.2, "grayscale": 0.1,
        "cutmix": 0.3, "copy_paste": 0.5,
    },
}  # fmt: skip
"""What `augment.preset` stands for. Every preset names the same keys."""
PRESET_KEYS = tuple(PRESETS["light"])


class Augment(Strict):
    """Random changes of the training images; docs/augmentation.md shows what each key does.

    `flip`, `flip_vertical`, `quarter_turns`, `rotate_probability`, `blur`, `grayscale`, `cutmix`
    and `copy_paste` are probabilities, `colour` and `hue` strengths, `scale` is the range of the
    resize factor, `resize` the shorter side in pixels before that factor, in training and at
    inference, `rotate` the largest angle in degrees to either side, `max_class_share` the fraction
    of the labelled pixels of a crop that one class should not exceed. Values given beside a
    `preset` replace its own.
    """

    preset: Literal["none", "light", "medium", "strong"] = "none"
    resize: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    scale: Annotated[
        list[Positive], Field(min_length=2, max_length=2), AfterValidator(_ordered)
    ] = Field(default_factory=lambda: [1.0, 1.0])
    max_class_share: PositiveFraction = 1.0
    flip: Fraction = 0.5
    flip_vertical: Fraction = 0.0
    quarter_turns: Fraction = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    rotate_probability: Fraction = 0.5
    colour: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    blur: Fraction = 0.0
    grayscale: Fraction = 0.0
    cutmix: Fraction = 0.0
    copy_paste: Fraction = 0.0

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: object) -> object:
        """Add the values of the preset that are not given otherwise."""
        if isinstance(values, dict) and isinstance(preset := values.get("preset"), str):
            return PRESETS.get(preset, {}) | values
        return values


class EarlyStop(Strict):
    """Stop when `metric` on the validation split has not improved for `patience` validations.

    miou rises, val_loss falls.
    """

    metric: Literal["miou", "val_loss"] = "miou"
    patience: Count


class Recipe(Strict):
    """Everything that decides how a model is trained; docs/recipes.md has every key and unit."""

    loss: Annotated[dict[LossName, Positive], Field(min_length=1)] = Field(
        default_factory=lambda: {"ce": 1.0}
    )
    loss_options: LossOptions = LossOptions()
    activation: Literal["softmax", "sigmoid"] = "softmax"
    class_weights: Annotated[str | list[float], PlainValidator(_class_weights)] = "none"
    oversample: Annotated[float | Literal["none", "rare"], PlainValidator(_oversample)] = "none"
    optimizer: Optimizer
    batch_size: Count
    crop: Annotated[int, Field(ge=32, multiple_of=32)]
    augment: Augment = Augment()
    eval_scale: InputScale = 1.0
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    fp32_modules: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    channels_last: bool = True
    micro_batch: Count | None = None
    activation_checkpointing: bool = False
    batch_norm: Literal["train", "frozen", "group"] = "train"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    feature_views: Count | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Positive | None = None
    early_stop: EarlyStop | None = None
    validate_every: Count = 1
    checkpoint_minutes: Positive = 5.0
    workers: Annotated[int | Literal["auto"], PlainValidator(_workers)] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    evidence: Annotated[str, Field(min_length=1)] = "none"
    stages: Annotated[list[Stage], Field(min_length=1)]

    @field_validator("stages")
    @classmethod
    def _stages_agree(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        names = [stage.name for stage in stages]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"stage names must differ; given twice: {', '.join(twice)}")
        every = info.data.get("validate_every", 1)
        wrong = []
        for stage in stages:
            patience = stage.schedule.patience
            needed = (patience + 1) * every + 1
            if stage.schedule.kind == "plateau" and stage.epochs < needed:
                wrong.append(
                    f"{stage.name}: the plateau's patience of {patience} validations needs a "
                    f"stage of at least {needed} epochs (validate_every is {every}), it has "
                    f"{stage.epochs}; lower the patience or raise epochs"
                )
        if wrong:
            raise ValueError("; ".join(wrong))
        return stages


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, every default filled in."""
    return recipe.model_dump(mode="json")


def recipe_hash(recipe: Recipe, options: Mapping[str, Any] | None = None) -> str:
    """16 hexadecimal digits that name what the recipe does, to a model with these `options`.

    `seed` and `evidence` do not count, nor do keys at their defaults, so that a key which is added
    later changes no hash. A default must therefore never change its value.
    """
    stated = recipe.model_dump(mode="json", exclude={"seed", "evidence"}, exclude_defaults=True)
    return hash_of(stated | {"model": dict(options)} if options else stated)
