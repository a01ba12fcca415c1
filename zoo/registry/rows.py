"""The grammar of registry.yaml and of a user's overlay file."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from zoo.common.class_lists import CLASS_LISTS, default_palette
from zoo.common.errors import InputError, join_problems, unknown
from zoo.common.files import parse_yaml, read_yaml
from zoo.common.schema import Strict, dotted, problems, unknown_key, written_as
from zoo.registry.encoders import Encoder
from zoo.registry.recipe import Recipe
from zoo.remote.address import PREFIX


def _column(name: str) -> str:
    if name not in Encoder._fields:
        raise ValueError(unknown_key(name, Encoder._fields))
    return name


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


Column = Annotated[str, AfterValidator(_column)]
Patterns = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
Where = dict[Column, Patterns]
"""Column of the encoder table to a pattern with * and ?, or to several of which one must fit."""

Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Std = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
"""Per channel of RGB, for pixels in [0, 1]."""


def matches(where: Where, encoder: Encoder) -> bool:
    """Whether every column of `where` fits the encoder's row."""
    return all(fits(patterns, getattr(encoder, column)) for column, patterns in where.items())


def fits(patterns: list[str], value: str) -> bool:
    """Whether one of the patterns matches `value`."""
    return any(fnmatchcase(value, pattern) for pattern in patterns)


class Divisible(Strict):
    """The channels of the feature map at `stride` must be a multiple of `by`."""

    stride: Annotated[int, Field(ge=1)]
    by: Annotated[int, Field(ge=1)]


class Needs(Strict):
    """What the decoder's class in segmentation-models-pytorch asks of an encoder.

    Other encoders reach the decoder through zoo's adapter. `input_multiple` (pixels) is for
    encoders that do not take every size as built: the size they are made for must be a multiple of
    it.
    """

    where: Where = Field(default_factory=dict)
    channels_divisible: Divisible | None = None
    input_multiple: Annotated[int, Field(ge=1)] | None = None

    def lacking(self, encoder: Encoder) -> str | None:
        """What the encoder lacks, or None where it fits."""
        for column, patterns in self.where.items():
            value = getattr(encoder, column)
            if not fits(patterns, value):
                wanted = " or ".join(pattern or "none" for pattern in patterns)
                return f"{column} {wanted}, has {value or 'none'}"
        if (rule := self.channels_divisible) is not None:
            channels = encoder.channels_at(rule.stride)
            if channels is None or channels % rule.by:
                return f"a multiple of {rule.by} channels at stride {rule.stride}, has {channels}"
        if self.input_multiple is not None and encoder.resizes != "any":
            sides = [int(side) for side in encoder.input_size.split("/")[1:]]
            if any(side % self.input_multiple for side in sides):
                return f"input sides of a multiple of {self.input_multiple}, has {sides}"
        return None


class Case(Strict):
    """Arguments of the decoder's class, and of timm, for the encoders that match `where`."""

    where: Where
    args: dict[str, Any] = Field(default_factory=dict)
    encoder_args: dict[str, Any] = Field(default_factory=dict)


class Decoder(Strict):
    """A decoder: `args` go to its class, `encoder_args` to timm.

    The arguments of the first of `cases` that matches the encoder come on top of `args`. A head of
    zoo's own has no `needs`; `takes` are the only encoders that one can be built on, except those
    that match `leaves_out`. `recipe` takes the place of the encoder rules' recipe.
    """

    title: Annotated[str, Field(min_length=1)]
    paper: Annotated[
        str, written_as(r"\d{4}\.\d{4,5}|doi:10\.\d+/\S+", "an arXiv id or doi:10.NUMBER/NAME")
    ]
    args: dict[str, Any] = Field(default_factory=dict)
    encoder_args: dict[str, Any] = Field(default_factory=dict)
    cases: list[Case] = Field(default_factory=list)
    needs: Needs | None = None
    takes: Where = Field(default_factory=dict)
    leaves_out: Where = Field(default_factory=dict)
    recipe: str | None = None

    def refuses(self, encoder: Encoder) -> str | None:
        """What an encoder that it cannot be built on lacks, or None where it can."""
        if self.leaves_out and matches(self.leaves_out, encoder):
            left_out = "; ".join(f"{key} {', '.join(p)}" for key, p in self.leaves_out.items())
            return f"an encoder that is not left out ({left_out}), has {encoder.name}"
        return Needs(where=self.takes).lacking(encoder) if self.takes else None


class Rule(Strict):
    """What holds for the encoders that match `where`; `args` go to timm's builder.

    `weights` is a local safetensors file, relative to the folder of the file that names it.
    """

    where: Where
    recipe: str | None = None
    weights: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    mean: Mean | None = None
    std: Std | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def _weights_come_with_statistics(self) -> Self:
        if self.weights is not None and (self.mean is None or self.std is None):
            raise ValueError("weights needs mean and std beside it, as the file was trained with")
        return self


def _with_colours(value: object) -> object:
    """Names of classes, or the name of a public set's, as names with colours."""
    if isinstance(value, str):
        if value not in CLASS_LISTS:
            raise ValueError(unknown("list of classes", value, CLASS_LISTS))
        return CLASS_LISTS[value]
    if not isinstance(value, list):
        return value
    if len({*map(str, value)}) < len(value):
        raise ValueError("class names must differ from each other")
    return dict(zip(value, default_palette(len(value)), strict=True))


Byte = Annotated[int, Field(ge=0, le=255)]
ClassColours = Annotated[
    dict[str, Annotated[tuple[Byte, Byte, Byte], Field(strict=False)]],
    BeforeValidator(_with_colours),
    Field(min_length=1, max_length=255),
]


class TrainedWeights(Strict):
    """Trained weights of a curated model, with the evidence.

    Without a `revision` they are not pinned: the commit is looked up when they are loaded, and
    recorded. `classes`, with their colours, are for a repository that states none: a list of names,
    a mapping of names to [red, green, blue], or the name of a public set whose classes they are.
    `source` says where the weights come from. `data`, `split` and `protocol` say what the metrics
    were measured on and how.
    """

    hub: Annotated[str, written_as(r"[\w.-]+/[\w.-]+", "ORG/REPO")]
    revision: (
        Annotated[str, written_as("[0-9a-f]{40}", "a commit of 40 hexadecimal digits")] | None
    ) = None
    classes: ClassColours | None = None
    source: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    data: str | None = None
    split: str | None = None
    protocol: Annotated[int, Field(ge=1)] | None = None
    results: str | None = None

    @property
    def address(self) -> str:
        """Where they lie, as a MODEL: `hf-hub:ORG/REPO[@REVISION]`."""
        return f"{PREFIX}{self.hub}" + (f"@{self.revision}" if self.revision else "")


class CuratedModel(Strict):
    """A trained model; `encoder` is `NAME[.TAG]` of timm, or `smp:NAME` of SMP alone.

    An `smp:` encoder is in no table, so it needs recipe, mean and std. `default` is the key of
    those `weights` that the name alone stands for; without it the name is an architecture.
    """

    encoder: str
    recipe: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    mean: Mean | None = None
    std: Std | None = None
    licence: str | None = None
    weights: dict[str, TrainedWeights] = Field(default_factory=dict)
    default: str | None = None

    @model_validator(mode="after")
    def _default_is_there(self) -> Self:
        if self.default is not None and self.default not in self.weights:
            raise ValueError(unknown("default weights", self.default, self.weights))
        return self

    @model_validator(mode="after")
    def _smp_encoders_are_described(self) -> Self:
        needed = (self.recipe, self.mean, self.std)
        if self.encoder.startswith("smp:") and any(value is None for value in needed):
            raise ValueError("an smp: encoder needs recipe, mean and std; timm's table has none")
        return self


class RegistryFile(Strict):
    """A registry file; an overlay may leave out any section."""

    version: Literal[1] = 1
    decoders: dict[str, Decoder] = Field(default_factory=dict)
    encoders: list[Rule] = Field(default_factory=list)
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    models: dict[str, CuratedModel] = Field(default_factory=dict)
    renamed: dict[str, str] = Field(default_factory=dict)


def read_registry_file(path: Path) -> RegistryFile:
    """Read one file. Raises InputError with every problem and its place in the file."""
    return _validated(read_yaml(path), str(path))


def parse_registry(text: str, source: str) -> RegistryFile:
    """A registry file's text; `source` names it in messages. Raises InputError."""
    return _validated(parse_yaml(text, source), source)


def _validated(content: Any, source: str) -> RegistryFile:
    try:
        return RegistryFile.model_validate({} if content is None else content)
    except ValidationError as error:
        lines = [
            f"{dotted(place) or 'top'}: {text}" for place, text in problems(error, RegistryFile)
        ]
        raise InputError(join_problems(f"{source} has problems:", lines)) from error
