"""Changing a recipe from outside, `optimizer.lr=0.002`, and the model: `model.KEY=value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from zoo.common.errors import InputError, join_problems, unknown
from zoo.common.files import parse_yaml
from zoo.common.schema import dotted, problems, submodel, unknown_key
from zoo.registry.encoder_args import chosen_args
from zoo.registry.recipe import PRESET_KEYS, Recipe, recipe_dict

MODEL = "model"
"""Overrides that begin with this and a dot change the model that is built."""
ENCODER_ARGS = "encoder_args"
"""The option of `zoo.create` whose keys are arguments of the encoder."""
NO_OPTIONS = {
    "classes": "the data give the classes",
    "in_chans": "the data give the channels",
    "palette": "the data give the colours",
    "img_size": "the encoder is built for the recipe's crop: write crop=PIXELS",
    "encoder_weights": "give --encoder-weights (encoder_weights=)",
}
"""Arguments of `zoo.create` that a run gets from elsewhere, and from where."""


def apply_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with each `key=value` applied in order; values are YAML.

    A mapping or list that is assigned replaces the old one whole; `stages.NAME.key=value` edits
    one stage; a new `augment.preset` replaces every value that presets set, but for those that are
    overridden too. Those of the model are for `model_options`. Raises InputError with everything
    that is wrong.
    """
    data = recipe_dict(recipe)
    wrong: list[str] = []
    seen: set[str] = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key or not text.strip():
            wrong.append(f"{override!r} is not key=value; for no value write key=null")
        elif key in seen:
            wrong.append(f"{key} is given twice")
        else:
            if key == "augment.preset" and "augment" not in seen:
                # the new preset sets every value that was not overridden by hand
                for name in PRESET_KEYS:
                    if f"augment.{name}" not in seen:
                        data["augment"].pop(name, None)
            seen.add(key)
            if not _is_of_model(key):
                wrong += _assign(data, key, text)
    try:
        changed = Recipe.model_validate(data)
    except ValidationError as error:
        wrong += [
            f"{_named(place, data)}: {sentence}" for place, sentence in problems(error, Recipe)
        ]
    if wrong:
        raise InputError(join_problems("These recipe overrides cannot be used:", wrong))
    return changed


def model_options(overrides: Sequence[str]) -> dict[str, Any]:
    """The overrides `model.KEY=value`, as `options` of `zoo.create`; values are YAML.

    `model.KEY.PART=value` sets one key of an option that is a mapping, as `encoder_args` is. Raises
    InputError with everything that cannot be an option of a model; whether it has the others is not
    looked at.
    """
    options: dict[str, Any] = {}
    wrong: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        if not _is_of_model(key):
            continue
        parts = key.split(".")[1:] or [""]
        if "" in parts:
            wrong.append(
                f"{key}: write {MODEL}.KEY=VALUE, such as {MODEL}.decoder_channels=[64, 32]"
            )
        elif parts[0] in NO_OPTIONS:
            wrong.append(f"{key}: {NO_OPTIONS[parts[0]]}")
        else:
            current = options
            for part in parts[:-1]:
                current = current.setdefault(part, {})
                if not isinstance(current, dict):
                    wrong.append(f"{key}: {key.rpartition('.')[0]} is given a value of its own too")
                    break
            else:
                if parts[-1] in current:
                    wrong.append(f"{key} is given twice, whole and in parts")
                current[parts[-1]] = parse_yaml(text, key)
    encoder_args = options.get(ENCODER_ARGS)
    if isinstance(encoder_args, dict) and "img_size" in encoder_args:
        wrong.append(f"{MODEL}.{ENCODER_ARGS}.img_size: {NO_OPTIONS['img_size']}")
    if wrong:
        raise InputError(join_problems("These options of the model cannot be used:", wrong))
    return options


def with_chosen_args(options: Mapping[str, Any], encoder_args: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with all arguments of the encoder that tell a model from others of its name.

    `encoder_args` are those that it is built with, wherever they come from.
    """
    chosen = chosen_args(encoder_args)
    return {**options, ENCODER_ARGS: chosen} if chosen else dict(options)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The overrides as a mapping from key to value, for records; expects them to be valid.

    `seed` is left out: records have a field for it, and runs that differ in it make one row. The
    arguments of the encoder are there one by one, however they were given.
    """
    found: dict[str, Any] = {}
    for key, _, text in (override.partition("=") for override in overrides):
        value = parse_yaml(text, key)
        if key == f"{MODEL}.{ENCODER_ARGS}" and isinstance(value, dict):
            found |= {f"{key}.{name}": part for name, part in value.items()}
        elif key != "seed":
            found[key] = value
    return found


def _is_of_model(key: str) -> bool:
    return key.partition(".")[0] == MODEL


def _assign(data: dict[str, Any], key: str, text: str) -> list[str]:
    """Set one dotted key in the recipe's data; returns what is wrong with it, if anything."""
    try:
        value = parse_yaml(text, key)
    except InputError as error:
        return [" ".join(str(error).split())]
    *owners, last = key.split(".")
    current: Any = data
    for depth, part in enumerate(owners):
        path = ".".join(owners[: depth + 1])
        if isinstance(current, list):
            stages = {str(s.get("name")): s for s in current if isinstance(s, dict)}
            if part not in stages:
                return [f"{key}: {unknown('stage', part, stages)}"]
            current = stages[part]
        elif part not in current:
            return [f"{key}: {unknown_key(part, list(current))}"]
        else:
            # a section that is switched off is opened as an empty one
            if current[part] is None and submodel(Recipe, (part,)) is not None:
                current[part] = {}
            current = current[part]
        if not isinstance(current, dict | list):
            return [f"{key}: {path} has no keys of its own; write {path}=VALUE"]
    if isinstance(current, list):
        return [f"{key}: write stages.{last}.KEY=VALUE, or stages=[...] to replace all stages"]
    if not owners and last not in data:
        # a key of a section without the section, as in `lr=0.1` for `optimizer.lr=0.1`
        sections = {name: section for name, section in data.items() if isinstance(section, dict)}
        listed = data["stages"] if isinstance(data["stages"], list) else []
        sections |= {f"stages.{s.get('name')}": s for s in listed if isinstance(s, dict)}
        if places := [f"{name}.{key}" for name, section in sections.items() if key in section]:
            return [f"{key}: there is no key {key!r}; did you mean {' or '.join(places)}?"]
    current[last] = value
    return []


def _named(place: Sequence[str | int], data: dict[str, Any]) -> str:
    """The dotted place with a stage's name instead of its position, as an override writes it."""
    if len(place) > 1 and place[0] == "stages" and isinstance(place[1], int):
        stage = data["stages"][place[1]]
        name = stage.get("name") if isinstance(stage, dict) else None
        return dotted(["stages", str(name or place[1]), *place[2:]])
    return dotted(place)
