"""What a run will do: its request, checked and resolved into a plan before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from zoo.common.console import info, warn
from zoo.common.errors import (
    InputError,
    join_problems,
    nearest,
    number_of,
    shortened,
    type_words,
)
from zoo.common.errors import unknown as unknown_name
from zoo.creation.create import DEFAULT, check_encoder_weights
from zoo.creation.locate import model_folder
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.split import recorded_val, with_val
from zoo.hub.folder import read_folder
from zoo.registry.decoders import DECODERS, defaults
from zoo.registry.load import load_registry
from zoo.registry.losses import LOSSES
from zoo.registry.overrides import (
    ENCODER_ARGS,
    MODEL,
    apply_overrides,
    model_options,
    parse_overrides,
)
from zoo.registry.recipe import Augment, Optimizer, Recipe, Stage
from zoo.registry.resolve import Resolved, resolve
from zoo.training.given import GivenModel, is_model, take

AUTO = "auto"
"""The name under which a recipe chosen from the data is requested and recorded."""
SCRATCH = "scratch"
"""The recipe for an encoder with random weights."""
CHECKPOINT = "checkpoint.pt"
"""The file in a run folder that says where the run stands."""
ONE_CLASS = {"activation": "sigmoid", "class_weights": "none"}
"""What a recipe has for a model of one class; there is no logit of the background to weigh."""
FEW_STEPS = 300
"""Runs of fewer steps than this say so."""
UNITS = {"s": 1, "m": 60, "h": 3600}
"""Seconds of the units that a budget is written in."""


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do: the arguments of `zoo.finetune`, which explains them."""

    model: str | Path | GivenModel
    data: str | Path
    recipe: str | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    encoder_weights: str | Path | None = DEFAULT
    new_head: bool = False
    registry: Path | None = None
    resume: bool = False
    track: tuple[str, ...] = ()
    budget: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will do: the request with its names, recipe and data set resolved.

    `model` is the architecture's name; `folder` is the trained model to start from, if any, and
    `given` the weights of a model object. `usual` is the registry's recipe for the model. With the
    recipe name `auto`, `recipe` is the one that the choice starts from, until `resolve_auto` has
    made it; `auto` then has choices and reasons. `options` of the model are what the overrides
    `model.KEY=value` give. `divided` says how the val split was made, where the data had none, see
    `with_val`.
    """

    request: RunRequest
    model: str
    folder: Path | None
    dataset: Dataset
    recipe: Recipe
    recipe_name: str
    usual: str
    overrides: dict[str, Any]
    out: Path
    divided: dict[str, Any] | None = None
    auto: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> GivenModel | None:
        """The model object that the run starts from, if any."""
        return self.request.model if isinstance(self.request.model, GivenModel) else None

    def stage(self, name: str | None) -> Stage:
        """The stage of the recipe with this name, None: the last. Raises InputError."""
        stages = {one.name: one for one in self.recipe.stages}
        if name is not None and name not in stages:
            raise InputError(unknown_name("stage", name, stages))
        return self.recipe.stages[-1] if name is None else stages[name]

    @property
    def resolved(self) -> Resolved:
        """What the registry says of the model, with its options for the encoder."""
        return resolve(self.model, self.request.registry, self.options.get(ENCODER_ARGS))

    @property
    def img_size(self) -> int | None:
        """The crop in whole patches, where the encoder must be built for a size; else None."""
        row = self.resolved.row
        if row is None or not row.built_for_size:
            return None
        return -(-self.recipe.crop // row.size_step) * row.size_step


_PATH = (str, Path)
_ARGUMENTS: dict[str, tuple[tuple[type, ...], str]] = {
    "model": (
        _PATH,
        "a name, such as unet-resnet18, the folder of a trained model or what zoo.create returned, "
        "without a wrapper",
    ),
    "data": (_PATH, "a folder, a dataset.yaml or FORMAT:PATH"),
    "recipe": ((str, type(None)), "the name of a recipe; single values go into overrides"),
    "out": ((*_PATH, type(None)), "a folder"),
    "encoder_weights": (
        (*_PATH, type(None)), '"default", a .safetensors file, "hf-hub:ORG/REPO" or None'
    ),
    "registry": ((*_PATH, type(None)), "an overlay file"),
    "budget": ((str, type(None)), 'a text, such as "10m"'),
    "new_head": ((bool,), "True or False"),
    "resume": ((bool,), "True or False"),
}  # fmt: skip
"""What each argument of a run may be, as types and in words."""


def make_request(*, unknown: Mapping[str, Any], **given: Any) -> RunRequest:
    """The request with the arguments of `zoo.finetune`; `unknown` are those that it does not have.

    Raises InputError for these, with the override that stands for each, and for other types.
    """
    problems = []
    model = given.get("model")
    is_object = not isinstance(model, _PATH) and is_model(model)
    sections: dict[str, type[BaseModel]] = {
        "": Recipe, "optimizer.": Optimizer, "augment.": Augment,
    }  # fmt: skip
    for name, (types, words) in _ARGUMENTS.items():
        if name == "model" and is_object:
            continue
        if name in given and not isinstance(given[name], types):
            problems.append(f"{name} should be {words}, got {type_words(given[name])}")
    for name, example in (("overrides", '["batch_size=4"]'), ("track", '["tensorboard"]')):
        values = given.get(name) or ()
        if name == "track" and isinstance(values, str):
            values = (values,)
        if isinstance(values, list | tuple) and all(isinstance(text, str) for text in values):
            given[name] = tuple(values)
        else:
            problems.append(f"{name} should be a list such as {example}, got {type_words(values)}")
    for name, value in unknown.items():
        place = next((at for at, part in sections.items() if name in part.model_fields), None)
        text = f"there is no argument {name}"
        if place is not None:
            text += f'; it is a value of the recipe: overrides=["{place}{name}={value}"]'
        elif name == ENCODER_ARGS:
            text += f'; write overrides=["{MODEL}.{ENCODER_ARGS}.KEY=VALUE"]'
        elif any(name in defaults(decoder) for decoder in DECODERS):
            text += f'; it is an option of the model: overrides=["{MODEL}.{name}={value}"]'
        elif close := nearest(name, [*_ARGUMENTS, "overrides", "track"]):
            text += f"; did you mean {' or '.join(close)}?"
        problems.append(text)
    if problems:
        raise InputError(join_problems("The run cannot start:", problems))
    for name in ("out", "registry"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    if is_object:
        given["model"] = take(given["model"])
    return RunRequest(**given)


def make_plan(request: RunRequest) -> Plan:
    """Resolve names, recipe and data.

    Imports no torch, and asks the Hub only for a model of a repository. Raises InputError for
    anything that does not exist, and for values that do not fit each other.
    """
    if request.budget is not None:
        parse_budget(request.budget)
        if request.recipe != AUTO:
            raise InputError(
                f"A budget chooses the epochs, which only the recipe {AUTO} leaves open. Add "
                f"--recipe {AUTO}, or set stages.NAME.epochs instead of a budget."
            )
    known = load_registry(request.registry)
    if request.recipe not in (None, AUTO):
        known.recipe(str(request.recipe))
    weights, registry = request.encoder_weights, request.registry
    name, folder, described = str(request.model), None, None
    if isinstance(request.model, GivenModel):
        described = request.model.described
    else:
        folder = model_folder(request.model, registry, names=weights == DEFAULT)
        described = None if folder is None else read_folder(folder, registry)
    if described is not None:
        name = described.spec.name
        if len(described.spec.classes) == 1 and not request.new_head:
            request = _for_one_class(request)
        if weights != DEFAULT:
            raise InputError(f"{request.model} has weights; encoder_weights is for names only.")
    options = model_options(request.overrides)
    resolved = resolve(name, registry, options.get(ENCODER_ARGS) if described is None else None)
    if described is None:
        resolved.check(options)
        check_encoder_weights(resolved, weights)
    elif options:
        raise InputError(
            f"{request.model} is built already, so its network is fixed. Leave out "
            f"{', '.join(f'{MODEL}.{key}' for key in options)}, or start from a name."
        )
    usual = SCRATCH if weights is None else resolved.recipe
    chosen = request.recipe or usual
    recipe = apply_overrides(known.recipe(usual if chosen == AUTO else chosen), request.overrides)
    if request.budget is not None:
        refuse_epochs_given(parse_overrides(request.overrides))
    check_feature_views(recipe)
    check_loss(recipe, resolved.decoder)
    dataset = load_dataset(request.data)
    out = request.out or Path("runs") / f"{name}-{dataset.name}"
    dataset, divided = with_val(dataset, recorded_val(out) if request.resume else None)
    for split in ("train", "val"):
        dataset.samples(split)
    check_classes(recipe, dataset)
    return Plan(
        request=request,
        model=name,
        folder=folder,
        dataset=dataset,
        recipe=recipe,
        recipe_name=chosen,
        usual=usual,
        overrides=parse_overrides(request.overrides),
        out=out,
        divided=divided,
        options=options,
    )


def _for_one_class(request: RunRequest) -> RunRequest:
    """The request with what the recipe must have for one logit per pixel.

    Raises InputError where an override asks for something else.
    """
    given = parse_overrides(request.overrides)
    for key, value in ONE_CLASS.items():
        if given.get(key, value) != value:
            raise InputError(
                f"{request.model} has one class and so one logit per pixel, for which {key} is "
                f"{value}, not {given[key]}. Leave {key} out, or give --new-head "
                "(new_head=True) to train a logit for the background too."
            )
    added = [f"{key}={value}" for key, value in ONE_CLASS.items() if key not in given]
    if added:
        info(f"A model of one class learns with {' and '.join(added)}.")
    return replace(request, overrides=(*request.overrides, *added))


def warn_of_few_steps(plan: Plan) -> None:
    """Say where a recipe of the registry gives a run fewer than `FEW_STEPS` steps."""
    images, epochs = len(plan.dataset.samples("train")), sum(s.epochs for s in plan.recipe.stages)
    steps = max(1, images // plan.recipe.batch_size) * epochs
    if steps < FEW_STEPS and plan.recipe_name != AUTO:
        warn(
            f"Only {number_of(steps, 'step')}: {number_of(epochs, 'epoch')} of "
            f"{number_of(images, 'image')}, {plan.recipe.batch_size} at a time. That is little for "
            f"training; --recipe {AUTO} chooses the epochs by the data, stages.NAME.epochs sets "
            "them."
        )


def check_loss(recipe: Recipe, decoder: str) -> None:
    """Raise InputError unless models of `decoder` give what the losses of `recipe` read."""
    queries = [name for name in recipe.loss if LOSSES[name].reads == "queries"]
    if queries and "queries" not in defaults(decoder):
        raise InputError(
            f"{', '.join(sorted(queries))} need mask queries, which {decoder} does not have. Take "
            "a model of the decoder eomt or pmt, or another loss."
        )
    if queries and recipe.activation == "sigmoid":
        raise InputError(
            "Query losses predict every mask by itself already: leave activation at softmax."
        )


def check_classes(recipe: Recipe, dataset: Dataset) -> None:
    """Raise InputError where the recipe is not for as many classes as the data have."""
    classes, weights = len(dataset.classes), recipe.class_weights
    if isinstance(weights, list) and len(weights) != classes:
        raise InputError(
            f"class_weights has {len(weights)} values, {dataset.name} has {classes} classes "
            f"({shortened(dataset.classes, 5)}). Give one weight per class, in this order."
        )
    if classes == 1:
        raise InputError(
            f"{dataset.name} has one class ({dataset.classes[0]}), so there is nothing to tell "
            "apart. Name two: the background as id 0, the class as id 1."
        )


def parse_budget(text: str) -> float:
    """The seconds of `90s`, `10m` or `1h`. Raises InputError for everything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or float(found[1]) == 0:
        raise InputError(
            f"Invalid budget {text!r}: write a number above 0 and s, m or h, such as 90s, 10m, 1h."
        )
    return float(found[1]) * UNITS[found[2]]


def refuse_epochs_given(keys: Collection[str]) -> None:
    """Raise InputError if an override sets what the budget chooses."""
    taken = [
        key
        for key in sorted(keys)
        if key in ("stages", "validate_every") or re.fullmatch(r"stages\.[^.]+\.epochs", key)
    ]
    if taken:
        raise InputError(
            f"A budget chooses the epochs and validate_every, but the overrides {shortened(taken)} "
            "set them. Remove the budget or these overrides."
        )


def check_feature_views(recipe: Recipe) -> None:
    """Raise InputError where `recipe` asks for stored features that its other keys rule out."""
    if recipe.feature_views is None:
        return
    problems = []
    if recipe.augment.cutmix > 0 or recipe.augment.copy_paste > 0:
        problems.append(
            "augment.cutmix and augment.copy_paste take pixels from other images of the batch, "
            "which change with every epoch: set both to 0"
        )
    if recipe.oversample != "none":
        problems.append(
            "oversample draws images repeatedly, each time augmented differently: set it to none "
            "(class_weights also make rare classes count more)"
        )
    if not any(
        stage.learn != "all"
        or (not stage.unfreeze_names and 0 in (stage.unfreeze, stage.unfreeze_from))
        for stage in recipe.stages
    ):
        problems.append("the encoder learns in every stage: give one of them unfreeze=0")
    if problems:
        raise InputError(join_problems("feature_views cannot be used here:", problems))
