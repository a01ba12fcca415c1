"""Reading the registry and a user's overlay, and checking them as a whole."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.common.errors import InputError, RunError, join_problems, nearest, unknown
from zoo.registry import encoders as timm_table
from zoo.registry.from_hub import fetch_overlay, unsafe_parts
from zoo.registry.recipe import Recipe
from zoo.registry.rows import CuratedModel, Decoder, RegistryFile, Rule, read_registry_file
from zoo.remote.address import is_address, snapshot_origin

OURS = "registry.yaml"
PACKAGE = Path(__file__).parent.parent


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
        """Where a row was read, for example `registry.yaml: decoders.unet`."""
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
        overlay = fetch_overlay(str(overlay))
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


@functools.lru_cache(maxsize=8)
def _load(ours: Path, _: object, overlay: Path | None, __: object) -> Registry:
    base = read_registry_file(ours)
    _refuse(ours, [*_missing_parts(base), *_wrong_references(base, base, ours.parent)])
    if overlay is None:
        return _merged(base, RegistryFile(), None)
    extra = read_registry_file(overlay)
    if snapshot_origin(overlay.parent) is not None:
        _refuse(overlay, unsafe_parts(extra))
    _refuse(overlay, _wrong_references(extra, base, overlay.parent))
    return _merged(base, extra, overlay)


def _merged(base: RegistryFile, extra: RegistryFile, overlay: Path | None) -> Registry:
    sections = ("decoders", "recipes", "models", "renamed")
    return Registry(
        decoders=base.decoders | extra.decoders,
        recipes=base.recipes | extra.recipes,
        models=base.models | extra.models,
        renamed=base.renamed | extra.renamed,
        rules=base.encoders,
        overlay_rules=extra.encoders,
        overlay=overlay,
        origins={
            f"{section}.{name}": f"overlay {overlay}"
            for section in sections
            for name in getattr(extra, section)
        },
    )


def _refuse(path: Path, problems: Iterable[str]) -> None:
    if found := list(problems):
        raise InputError(join_problems(f"{path} has problems:", found))


def _missing_parts(file: RegistryFile) -> Iterator[str]:
    """What the registry itself must have and an overlay need not."""
    if not file.decoders:
        yield "decoders: is empty"
    if not file.encoders or file.encoders[-1].where or file.encoders[-1].recipe is None:
        yield "encoders: the last rule must match everything (where: {}) and name a recipe"


def _wrong_references(file: RegistryFile, base: RegistryFile, folder: Path) -> Iterator[str]:
    """What names something that neither this file nor the registry below it has."""
    decoders, recipes = base.decoders, base.recipes | file.recipes
    for name, row in file.decoders.items():
        yield from (f"decoders.{name}{text}" for text in _wrong_decoder(name, row, base, recipes))
    for index, rule in enumerate(file.encoders):
        if rule.recipe is not None and rule.recipe not in recipes:
            yield f"encoders[{index}].recipe: {unknown('recipe', rule.recipe, recipes)}"
        if rule.weights is not None and not (folder / rule.weights).is_file():
            yield f"encoders[{index}].weights: there is no file {folder / rule.weights}"
    models = base.models | file.models
    for name, model in file.models.items():
        if model.recipe is not None and model.recipe not in recipes:
            yield f"models.{name}.recipe: {unknown('recipe', model.recipe, recipes)}"
        yield from (f"models.{name}: {text}" for text in _wrong_model(name, model, decoders))
    for old, new in file.renamed.items():
        if new not in models and (wrong := name_problems(new, decoders)):
            yield f"renamed.{old}: {' '.join(wrong)}"
        if old in models or not name_problems(old, decoders):
            yield f"renamed.{old}: this name is still in use"


def _wrong_decoder(
    name: str, row: Decoder, base: RegistryFile, recipes: dict[str, Recipe]
) -> Iterator[str]:
    if name not in base.decoders:
        yield f": {unknown('decoder', name, base.decoders)}"
    if row.recipe is not None and row.recipe not in recipes:
        yield f".recipe: {unknown('recipe', row.recipe, recipes)}"


def _wrong_model(name: str, row: CuratedModel, decoders: dict[str, Decoder]) -> Iterator[str]:
    decoder, hyphen, _ = name.partition("-")
    if not hyphen or decoder not in decoders:
        yield f"the name must start with a decoder and a hyphen: {', '.join(decoders)}"
    elif not row.encoder.startswith("smp:"):
        yield from name_problems(f"{decoder}-{row.encoder}", decoders)


def current_name(name: str, registry: Registry) -> str:
    """The name, or what it is called now, with a FutureWarning."""
    if name not in registry.renamed:
        return name
    new = registry.renamed[name]
    warnings.warn(
        f"The model {name} is called {new} now. Use the new name.", FutureWarning, stacklevel=3
    )
    return new


def split_name(name: str) -> tuple[str, str, str | None]:
    """Decoder, encoder and tag of `<decoder>-<encoder>[.<tag>]`, not yet checked."""
    decoder, _, encoder = name.partition("-")
    encoder, dot, tag = encoder.partition(".")
    return decoder, encoder, tag if dot else None


def name_problems(name: str, decoders: dict[str, Decoder]) -> list[str]:
    """What is wrong with a model's name; an empty list where nothing is."""
    if "-" not in name:
        return [_without_hyphen(name, decoders)]
    decoder, encoder, tag = split_name(name)
    wrong = []
    if decoder not in decoders:
        wrong.append(unknown("decoder", decoder, decoders))
    encoders = timm_table.encoders()
    if encoder not in encoders:
        wrong.append(_unknown_encoder(encoder, list(encoders)))
    elif tag is not None and tag not in encoders[encoder].tags.split("/"):
        tags = encoders[encoder].tags
        wrong.append(
            unknown(f"tag of {encoder}", tag, tags.split("/"))
            if tags
            else f"{encoder} has no pretrained weights, so leave out the tag {tag!r}."
        )
    return wrong


def _without_hyphen(name: str, decoders: dict[str, Decoder]) -> str:
    text = f"{name!r} is not a model name. A name is <decoder>-<encoder>[.<tag>]"
    if name in decoders:
        return f"{text}: add an encoder, for example {name}-resnet18."
    if name.partition(".")[0] in timm_table.encoders():
        return f"{text}: add a decoder, for example unet-{name}."
    return f"{text}, for example unet-resnet18."


def _unknown_encoder(encoder: str, encoders: list[str]) -> str:
    if encoder.startswith("smp:"):
        return f"{encoder!r} can be used through a curated model of the registry alone."
    close = nearest(encoder.removeprefix("tu-").lower(), encoders)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown encoder {encoder!r}.{hint} `zoo list` shows what there is."
