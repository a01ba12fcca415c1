"""registry.yaml and a user's overlay: their grammar, reading them, checking them as a whole."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator

from zoo.common.class_lists import CLASS_LISTS, default_palette
from zoo.common.errors import InputError, RunError, join_problems, nearest, unknown
from zoo.common.files import parse_yaml, read_yaml
from zoo.common.schema import Strict, dotted, problems, written_as
from zoo.registry import encoders as timm_table
from zoo.registry.decoders import DECODERS, Decoder, DecoderChanges, allowed_options
from zoo.registry.encoder_args import encoder_problems
from zoo.registry.encoders import ENCODER_ARGS, Where, wrong_arguments
from zoo.registry.recipe import Recipe
from zoo.remote.address import PREFIX, hub_timeout, is_address, parse_address, snapshot_origin

OURS = "registry.yaml"
PACKAGE = Path(__file__).parent.parent
MAX_BYTES = 1_000_000

Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Std = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
"""Per channel of RGB, for pixels in [0, 1]."""


License = Annotated[str | None, Field(validation_alias=AliasChoices("license", "licence"))]
"""The terms of weights; overlays may spell the key in either way."""


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
    license: License = None

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
    """A trained model; `encoder` is `NAME[.TAG]` of timm, or `smp:NAME` for one that only SMP has.

    `args` go to the decoder's class, `encoder_args` to timm.

    An `smp:` encoder is in no table, so it needs recipe, mean and std. `default` is the key of
    those `weights` that the name alone stands for; without it the name is an architecture.
    """

    encoder: str
    recipe: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    encoder_args: dict[str, Any] = Field(default_factory=dict)
    mean: Mean | None = None
    std: Std | None = None
    license: License = None
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
    decoders: dict[str, DecoderChanges] = Field(default_factory=dict)
    encoders: list[Rule] = Field(default_factory=list)
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    models: dict[str, CuratedModel] = Field(default_factory=dict)
    renamed: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Registry:
    """The registry with a user's overlay on top.

    `rules` and `overlay_rules` are in file order; `origins` maps a place such as `decoders.unet`
    to the file it was read from, as text to show.
    """

    decoders: dict[str, Decoder]
    recipes: dict[str, Recipe]
    models: dict[str, CuratedModel]
    renamed: dict[str, str]
    rules: list[Rule]
    overlay_rules: list[Rule]
    overlay: Path | None
    origins: dict[str, str]

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name. Raises InputError naming the nearest ones."""
        if name not in self.recipes:
            raise InputError(unknown("recipe", name, self.recipes))
        return self.recipes[name]

    def origin(self, place: str) -> str:
        """Where a row comes from, for example `registry.yaml: recipes.cnn`."""
        section, _, name = place.partition(".")
        if section == "decoders" and place not in self.origins:
            return f"decoder table: {name}"
        return f"{self.origins.get(place, OURS)}: {place}"


def registry_file() -> Path:
    """The registry that comes with zoo: inside the installed package, else beside it."""
    for path in (PACKAGE / OURS, PACKAGE.parent / OURS):
        if path.is_file():
            return path
    raise RunError(f"{OURS} is missing from this installation of zoo. Install zoo again.")


def load_registry(overlay: Path | None = None) -> Registry:
    """The registry, with the overlay given here or named by the variable ZOO_REGISTRY on top.

    An overlay may lie on the Hub: `hf-hub:ORG/REPO@COMMIT`. Raises InputError with every problem of
    a file at once. A file is read again once it changes.
    """
    if overlay is None and (named := os.environ.get("ZOO_REGISTRY")):
        overlay = Path(named)
    if overlay is not None and is_address(overlay):
        overlay = _fetch_overlay(str(overlay))
    ours = registry_file()
    return _load(ours, _version(ours), overlay, _version(overlay) if overlay else None)


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"Cannot read the registry file {path}: {error.strerror}. Check the path given by "
            "--registry or the variable ZOO_REGISTRY."
        ) from error
    return status.st_mtime_ns, status.st_size


def _fetch_overlay(text: str) -> Path:
    """`registry.yaml` of `hf-hub:ORG/REPO@COMMIT`, in the Hub's cache.

    A commit that is cached needs no request. Raises InputError unless the commit is given in full.
    """
    address = parse_address(text)
    if not address.pinned:
        raise InputError(
            f"The registry {text} is not pinned, so it could change at any time. Give the full "
            f"commit: hf-hub:{address.repo}@<40 hexadecimal digits>."
        )
    from zoo.remote.client import Task
    from zoo.remote.files import download, listing_or_cached, note_verified

    ways = ("from a local file: point ZOO_REGISTRY at it",)
    task = Task(f"fetch the registry {address.repo}", address, ways)
    timeout = hub_timeout()
    listing = listing_or_cached(task, (OURS,), timeout)
    if isinstance(listing, Path):
        return listing / OURS
    listed = listing.files.get(OURS)
    if listed is None or listed.size > MAX_BYTES:
        raise InputError(f"{address.repo} holds no {OURS} of at most {MAX_BYTES} bytes.")
    file = download(task, listing, OURS, timeout)
    note_verified(task, listing, (OURS,))
    return file


def parse_registry(text: str, source: str) -> RegistryFile:
    """A registry file's text; `source` names it in messages.

    Raises InputError with every problem and its place in the file.
    """
    return _validated(parse_yaml(text, source), source)


def _validated(content: Any, source: str) -> RegistryFile:
    try:
        return RegistryFile.model_validate({} if content is None else content)
    except ValidationError as error:
        lines = [
            f"{dotted(place) or 'top'}: {text}" for place, text in problems(error, RegistryFile)
        ]
        raise InputError(join_problems(f"{source} has problems:", lines)) from error


@functools.lru_cache(maxsize=8)
def _load(ours: Path, _: object, overlay: Path | None, __: object) -> Registry:
    base, extra = _validated(read_yaml(ours), str(ours)), RegistryFile()
    problems = list(_wrong_references(base, base, ours.parent))
    if not base.encoders or base.encoders[-1].where or base.encoders[-1].recipe is None:
        problems.append(
            "encoders: the last rule must match everything (where: {}) and name a recipe"
        )
    _refuse(ours, problems)
    if overlay is not None:
        extra = _validated(read_yaml(overlay), str(overlay))
        if snapshot_origin(overlay.parent) is not None:
            _refuse(overlay, _unsafe_parts(extra))
        _refuse(overlay, _wrong_references(extra, base, overlay.parent))

    # what files say of a decoder replaces those fields of its row as a whole
    changed = {
        name: DECODERS[name].model_copy(update=dict(changes))
        for name, changes in (base.decoders | extra.decoders).items()
    }
    return Registry(
        decoders=DECODERS | changed,
        recipes=base.recipes | extra.recipes,
        models=base.models | extra.models,
        renamed=base.renamed | extra.renamed,
        rules=base.encoders,
        overlay_rules=extra.encoders,
        overlay=overlay,
        origins={
            f"{section}.{name}": f"overlay {overlay}"
            for section in ("decoders", "recipes", "models", "renamed")
            for name in getattr(extra, section)
        },
    )


def _refuse(path: Path, problems: Iterable[str]) -> None:
    if found := list(problems):
        raise InputError(join_problems(f"{path} has problems:", found))


def _unsafe_parts(file: RegistryFile) -> Iterator[str]:
    """What a registry from the Hub must not hold: local paths, arguments that reach further."""
    for index, rule in enumerate(file.encoders):
        if rule.weights is not None:
            yield f"encoders[{index}].weights: a registry from the Hub may not name local files"
        yield from wrong_arguments(rule.args, ENCODER_ARGS, f"encoders[{index}].args")
    for name, decoder in file.decoders.items():
        place = f"decoders.{name}"
        yield from wrong_arguments(decoder.encoder_args, ENCODER_ARGS, f"{place}.encoder_args")
        yield from _wrong_options(name, decoder.args, f"{place}.args")
        for index, case in enumerate(decoder.cases):
            here = f"{place}.cases[{index}]"
            yield from _wrong_options(name, case.args, f"{here}.args")
            yield from wrong_arguments(case.encoder_args, ENCODER_ARGS, f"{here}.encoder_args")
    for name, model in file.models.items():
        yield from _wrong_options(name.partition("-")[0], model.args, f"models.{name}.args")
        for key, weights in model.weights.items():
            if weights.revision is None:
                yield f"models.{name}.weights.{key}.revision: is missing; a commit has to be pinned"


def _wrong_options(decoder: str, arguments: dict[str, Any], place: str) -> Iterator[str]:
    # which of an encoder's maps are taken is chosen for one encoder, not by a row for all of them
    allowed = allowed_options(decoder) - {"encoder_output_indices"}
    return wrong_arguments(arguments, allowed, place)


def _wrong_references(file: RegistryFile, base: RegistryFile, folder: Path) -> Iterator[str]:
    """What names something that neither this file nor the registry below it has."""
    recipes = base.recipes | file.recipes
    for name, row in file.decoders.items():
        if name not in DECODERS:
            yield f"decoders.{name}: {unknown('decoder', name, DECODERS)}"
        if row.recipe is not None and row.recipe not in recipes:
            yield f"decoders.{name}.recipe: {unknown('recipe', row.recipe, recipes)}"
    for index, rule in enumerate(file.encoders):
        if rule.recipe is not None and rule.recipe not in recipes:
            yield f"encoders[{index}].recipe: {unknown('recipe', rule.recipe, recipes)}"
        if rule.weights is not None and not (folder / rule.weights).is_file():
            yield f"encoders[{index}].weights: there is no file {folder / rule.weights}"
    models = base.models | file.models
    for name, model in file.models.items():
        if model.recipe is not None and model.recipe not in recipes:
            yield f"models.{name}.recipe: {unknown('recipe', model.recipe, recipes)}"
        decoder, hyphen, _ = name.partition("-")
        if not hyphen or decoder not in DECODERS:
            known = ", ".join(DECODERS)
            yield f"models.{name}: the name must start with a decoder and a hyphen: {known}"
        elif not model.encoder.startswith("smp:"):
            if found := name_problems(f"{decoder}-{model.encoder}"):
                yield from (f"models.{name}: {wrong}" for wrong in found)
                continue
            encoder = timm_table.encoders()[model.encoder.partition(".")[0]]
            for wrong in encoder_problems(encoder, model.encoder_args):
                yield f"models.{name}.encoder_args: {wrong}"
        elif model.encoder_args:
            yield f"models.{name}.encoder_args: only encoders of timm take them"
    for old, new in file.renamed.items():
        if new not in models and (problems := name_problems(new)):
            yield f"renamed.{old}: {' '.join(problems)}"
        if old in models or not name_problems(old):
            yield f"renamed.{old}: this name is still in use"


def current_name(name: str, registry: Registry) -> str:
    """The name, or what it is called now, with a FutureWarning."""
    if name not in registry.renamed:
        return name
    new = registry.renamed[name]
    warnings.warn(
        f"The model {name} is called {new} now. Use the new name.", FutureWarning, stacklevel=3
    )
    return new


class Name(NamedTuple):
    """A model's name in parts; `tag` is None where the name gives none."""

    decoder: str
    encoder: str
    tag: str | None


def split_name(name: str) -> Name:
    """The parts of `<decoder>-<encoder>[.<tag>]`, not yet checked."""
    decoder, _, encoder = name.partition("-")
    encoder, dot, tag = encoder.partition(".")
    return Name(decoder, encoder, tag if dot else None)


def name_problems(name: str) -> list[str]:
    """What is wrong with a model's name; an empty list where nothing is."""
    encoders = timm_table.encoders()
    if "-" not in name:
        text = f"{name!r} is not a model name. A name is <decoder>-<encoder>[.<tag>]"
        if name in DECODERS:
            return [f"{text}: add an encoder, for example {name}-resnet18."]
        if name.partition(".")[0] in encoders:
            return [f"{text}: add a decoder, for example unet-{name}."]
        return [f"{text}, for example unet-resnet18."]
    decoder, encoder, tag = split_name(name)
    wrong = []
    if decoder not in DECODERS:
        wrong.append(unknown("decoder", decoder, DECODERS))
    if encoder.startswith("smp:"):
        wrong.append(f"{encoder!r} can only be used through a curated model of the registry.")
    elif encoder not in encoders:
        close = nearest(encoder.removeprefix("tu-").lower(), list(encoders))
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        wrong.append(f"Unknown encoder {encoder!r}.{hint} `zoo list` shows what there is.")
    elif tag is not None and tag not in (tags := encoders[encoder].tags.split("/")):
        wrong.append(
            unknown(f"tag of {encoder}", tag, tags)
            if tags != [""]
            else f"{encoder} has no pretrained weights, so leave out the tag {tag!r}."
        )
    return wrong
