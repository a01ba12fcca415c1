"""The strict base of everything read from a file, and its errors in plain words."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from zoo.common.errors import brief, nearest, shortened

Place = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top."""

WORDS = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text, in quotes where it looks like a number",
    "bool_type": "should be true or false",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping of keys to values",
    "model_type": "should be a mapping of keys to values",
    "too_short": "has too few entries",
    "too_long": "has too many entries",
}
"""Our words for pydantic's error types; the others read well as they are."""


class Strict(BaseModel):
    """No unknown keys, no conversion between types, no change once made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def plain_value(value: Any) -> Any:
    """`value` as JSON has it, so that it can be checked and stored; what has no such form stays.

    Whole numbers of every kind (`__index__`) become int, tuples, arrays and tensors lists, texts
    and fractions of NumPy Python's own.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain_value(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain_value(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    elif not isinstance(value, bool) and hasattr(type(value), "__index__"):
        value = operator.index(value)
    return float(value) if isinstance(value, float) else value


def written_as(pattern: str, meaning: str) -> AfterValidator:
    """For text that must match `pattern` whole; `meaning` says in words what it should be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {meaning}, got {text!r}")
        return text

    return AfterValidator(check)


def problems(error: ValidationError, model: type[BaseModel]) -> list[tuple[Place, str]]:
    """Each thing wrong with the input of `model`: its place and what is wrong."""
    found = []
    for item in error.errors(include_url=False):
        place: Place = item["loc"]
        kind = item["type"]
        if kind == "missing":
            text = "is missing"
        elif kind == "extra_forbidden":
            owner = submodel(model, place[:-1])
            text = unknown_key(str(place[-1]), list(owner.model_fields) if owner else [])
        elif kind == "value_error":
            text = str(item["ctx"]["error"])
        else:
            plain = item["msg"].replace("Input should be", "should be")
            text = f"{WORDS.get(kind, plain)}, got {brief(item['input'])}"
        found.append((tuple(part for part in place if part != "[key]"), text))
    return found


def dotted(place: Sequence[str | int]) -> str:
    """`recipes.cnn.stages[1].unfreeze` for ("recipes", "cnn", "stages", 1, "unfreeze")."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """The sentence for a key that does not exist; at most twenty allowed keys, nearest first."""
    close = nearest(key, allowed)
    ordered = [*close, *(name for name in allowed if name not in close)]
    return f"there is no key {key!r}; allowed: {shortened(ordered)}"


def submodel(model: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """The model that describes the value at `place` in `model`'s input, if a model does."""
    current: type[BaseModel] | None = model
    annotation: Any = model
    for part in place:
        if current is not None and part in current.model_fields:
            annotation = current.model_fields[str(part)].annotation
        current = _model_in(annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)
