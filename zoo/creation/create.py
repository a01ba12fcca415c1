"""From a name, a folder or a repository to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import info
from zoo.common.errors import InputError, brief, join_problems, renamed, type_words
from zoo.common.files import sha256
from zoo.common.schema import plain_value
from zoo.creation.locate import (
    check_named,
    check_trained,
    model_folder,
    named_weights,
    pulled,
    weights_by_key,
)
from zoo.hub.config import check_spec
from zoo.hub.encoders import fetch_encoder, fetch_timm
from zoo.hub.folder import load_folder, read_folder
from zoo.models.spec import ModelSpec, class_names, model_spec, per_channel
from zoo.registry.resolve import Resolved, resolve
from zoo.registry.weights import check_license
from zoo.remote.address import is_address, parse_address

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel

DEFAULT = "default"
TWO = ("background", "foreground")
"""The classes of an architecture that is created without `classes`."""
NAMES: dict[str, tuple[tuple[type, ...], str]] = {
    "model": ((str, Path), "a name, such as unet-resnet18, a folder or hf-hub:ORG/REPO"),
    "weights": ((str, Path, type(None)), "the name of trained weights, a folder or a repository"),
    "encoder_weights": (
        (str, Path, type(None)), 'a .safetensors file, hf-hub:ORG/REPO, "default" or None'
    ),
    "license": ((str, type(None)), "a pattern of licenses, such as mit, or open"),
    "registry": ((str, Path, type(None)), "an overlay file"),
}  # fmt: skip
"""What the arguments of `create` that name something may be, as types and in words."""
LONGEST_NAME = 255
"""The most bytes in the name of a file, on every common file system."""
RENAMED = {
    "num_classes": "classes",
    "in_channels": "in_chans",
    "pretrained": "encoder_weights (None for random weights)",
    "encoder_name": "the name itself, as in unet-resnet18",
    "encoder": "the name itself, as in unet-resnet18",
}


def create(
    model: str | Path,
    *,
    classes: int | Sequence[str] | None = None,
    in_chans: int | None = None,
    encoder_weights: str | Path | None = DEFAULT,
    weights: str | Path | None = None,
    img_size: int | Sequence[int] | None = None,
    encoder_args: Mapping[str, Any] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    license: str | None = None,
    registry: str | Path | None = None,
    **options: Any,
) -> SegmentationModel:
    """Create a model from a name such as `unet-resnet18`, or load a trained one.

    `model`: a registry name, a model folder, a run folder (its best model), or a repository on the
    Hub as `hf-hub:ORG/REPO[@REVISION]`. Some names stand for trained weights, such as
    `segformer-b0-ade20k`; with `encoder_weights` given they are architectures like the others.
    `weights` (names only): trained weights, by the name that the registry gives them, as a folder
    or as a repository. `classes`: a number or a list of names; without it an architecture has two,
    background and foreground, and a trained model keeps its own (other classes replace its
    segmentation head). `in_chans`: input channels, 3 by default. `palette`: a colour (red, green,
    blue) in [0, 255] for each class. `encoder_weights` (names only): "default"
    for the tag's own from the Hub, a .safetensors file, a timm repository as
    `hf-hub:ORG/REPO[@REVISION]`, or None for random weights. `img_size`: side, or height and
    width, in pixels that an encoder is built for which does not take any size as it is.
    `encoder_args` (names only): arguments of timm's builder, such as
    `{"patch_size": 32, "drop_path_rate": 0.1}`; docs/create.md lists them. `license`: the terms
    that pretrained or trained weights have to come under, a pattern such as `mit`, or `open`.
    `registry`: an overlay file. Other `options` are arguments of the decoder's constructor, such as
    `decoder_channels`.

    A trained model is in evaluation mode, also with new classes, an architecture in training mode.
    Raises InputError for what cannot be built, RunError where the Hub does not answer.
    """
    license = renamed("licence", options.pop("licence", None), "license", license)
    _check_arguments(
        options,
        model=model, weights=weights, encoder_weights=encoder_weights, license=license,
        registry=registry,
    )  # fmt: skip
    options = {name: plain_value(value) for name, value in options.items()}
    registry = None if registry is None else Path(registry)
    by_name = encoder_weights == DEFAULT
    changed = bool(options) or not by_name
    changed |= any(given is not None for given in (in_chans, img_size, palette, encoder_args))

    # trained weights: named by the registry, or in a folder or a repository
    named = None
    if weights is None:
        named = named_weights(model, registry) if by_name else None
    elif not is_address(weights) and not Path(weights).is_dir():
        named = weights_by_key(str(model), str(weights), registry)
    if named is not None:
        check_named(named, changed, license)
        folder: Path | None = pulled(named, registry)
    else:
        folder = model_folder(model if weights is None else weights, registry, names=False)
    if folder is not None:
        found = read_folder(folder, registry).spec
        if changed:
            raise InputError(
                f"{weights or model} is a trained model; only classes= can be changed."
            )
        if weights is not None:
            wanted = resolve(str(model), registry)
            encoder = found.encoder.partition(".")[0]
            if (found.decoder, encoder) != (wanted.decoder, wanted.encoder):
                raise InputError(
                    f"{folder} holds {found.decoder}-{encoder}, not {model}. Leave the name out: "
                    "zoo.create takes a folder or hf-hub:ORG/REPO by itself."
                )
        return _from_folder(folder, found, classes, license, registry)

    # an architecture, its encoder pretrained or not
    from zoo.models.build import build

    if isinstance(encoder_args, Mapping) and "img_size" in encoder_args:
        if img_size is not None:
            raise InputError(
                "img_size is given twice, also in encoder_args. Leave out one of them."
            )
        encoder_args = dict(encoder_args)
        img_size = encoder_args.pop("img_size")
    resolved = resolve(str(model), registry, encoder_args)
    resolved.check(options)
    spec = model_spec(
        resolved, TWO if classes is None else classes, palette=palette,
        in_chans=3 if in_chans is None else in_chans, img_size=img_size, options=options,
    )  # fmt: skip
    check_spec(spec, resolved.name)  # a model that could not be loaded again is not made
    if classes is None:
        info(
            f"{resolved.name} gets two classes, background and foreground; give classes=, a number "
            "or a list of names, for others."
        )
    if license is not None and by_name:
        check_license(license, resolved.license, resolved.timm_name)
    file, source = encoder_source(resolved, encoder_weights)
    for statistic in ("mean", "std"):
        if statistic in source:
            source[statistic] = per_channel(source[statistic], spec.in_chans)
    spec = ModelSpec.model_validate(spec.model_dump(by_alias=False) | source)
    if license is not None and spec.encoder_weights is not None:
        check_license(license, spec.license, resolved.timm_name)
    return build(spec, file)


def load_trained(model: str | Path | SegmentationModel) -> SegmentationModel:
    """A trained model from whatever names it; a model object is returned as it is.

    `model`: a run folder, a model folder, a repository or a name that stands for trained weights.
    Raises InputError for the name of an architecture, whose segmentation head is random.
    """
    if not isinstance(model, str | Path):
        from zoo.models.segmentation import SegmentationModel

        if not isinstance(model, SegmentationModel):
            raise InputError(
                "A model should be a name, a folder or what zoo.create returned, got "
                f"{type_words(model)}."
            )
        return model
    check_trained(model)
    folder = model_folder(model)
    assert folder is not None  # `check_trained` refuses names of architectures
    return create(folder)


def _check_arguments(options: dict[str, Any], **given: object) -> None:
    """Raise InputError for arguments of other libraries, and for names that are no text or path."""
    for name, right in RENAMED.items():
        if name in options:
            raise InputError(f"{name}= is not an argument of zoo.create; use {right}.")
    _check_encoder_name(given["encoder_weights"])
    problems = []
    for name, (kinds, words) in NAMES.items():
        value = given[name]
        if not isinstance(value, kinds):
            problems.append(f"{name} should be {words}, got {type_words(value)}")
        elif value is not None and not _may_name(str(value)):
            problems.append(f"{name} should be {words}, got {brief(str(value))}")
    if problems:
        raise InputError(join_problems("The model cannot be made:", problems))


def _may_name(text: str) -> bool:
    """Whether a file system could hold the path `text`."""
    parts = text.encode(errors="replace").split(b"/")
    return text != "" and "\0" not in text and max(map(len, parts)) <= LONGEST_NAME


def _check_encoder_name(encoder_weights: object) -> None:
    if encoder_weights is True or encoder_weights is False or str(encoder_weights) == "imagenet":
        raise InputError(
            f"encoder_weights={encoder_weights!r} does not say which weights. Leave it out for the "
            "tag's own, choose a tag in the name (unet-resnet18.a1_in1k), give a .safetensors "
            "file, or None for random weights."
        )


def check_encoder_weights(resolved: Resolved, encoder_weights: str | Path | None) -> None:
    """Raise InputError for encoder weights that cannot exist. Nothing is fetched."""
    _check_encoder_name(encoder_weights)
    if encoder_weights is None:
        return
    if is_address(encoder_weights):
        parse_address(str(encoder_weights))
        return
    file = resolved.weights_file if encoder_weights == DEFAULT else Path(encoder_weights)
    if file is not None and not file.is_file():
        raise InputError(
            f"Weights file {file} does not exist. Give a .safetensors file, leave "
            "encoder_weights out for the tag's own, or give None (on the command line: none)."
        )
    if file is None and (resolved.hub_id is None or resolved.tag is None):
        raise InputError(
            f"timm has no pretrained weights for {resolved.timm_name}. "
            "Use encoder_weights=None (on the command line: --encoder-weights none)."
        )


def needs_network(resolved: Resolved, encoder_weights: str | Path | None) -> bool:
    """Whether these encoder weights come from the Hub or its cache."""
    by_default = encoder_weights == DEFAULT and resolved.weights_file is None
    return by_default or (encoder_weights is not None and is_address(encoder_weights))


def encoder_source(
    resolved: Resolved, encoder_weights: str | Path | None = DEFAULT
) -> tuple[Path | None, dict[str, Any]]:
    """The file with the encoder's weights, and what the spec says of them.

    That is nothing for random weights, else their identity (a tag, a repository or a hash), their
    revision and license, and mean and std where they differ from what the registry says.
    """
    check_encoder_weights(resolved, encoder_weights)
    if encoder_weights is None:
        return None, {}
    source: dict[str, Any] = {"license": resolved.license}
    if is_address(encoder_weights):
        timm = fetch_timm(resolved.encoder, parse_address(str(encoder_weights)))
        source |= {
            "encoder_weights": f"hf-hub:{timm.file.repo}",
            "encoder_revision": timm.file.revision,
        }
        given = {"mean": timm.mean, "std": timm.std, "license": timm.license}
        return timm.file.path, source | {key: value for key, value in given.items() if value}
    file = resolved.weights_file if encoder_weights == DEFAULT else Path(encoder_weights)
    if file is not None:
        return file, source | {"encoder_weights": f"sha256:{sha256(file)}"}
    assert resolved.hub_id is not None  # `check_encoder_weights` has looked
    assert resolved.tag is not None
    fetched = fetch_encoder(resolved.encoder, resolved.tag, resolved.hub_id)
    tag = {"encoder_weights": resolved.tag, "encoder_revision": fetched.revision}
    return fetched.path, source | tag


def _from_folder(
    folder: Path,
    spec: ModelSpec,
    classes: int | Sequence[str] | None,
    license: str | None,
    registry: Path | None,
) -> SegmentationModel:
    """The model in `folder`, which `spec` describes, with other classes where they are given."""
    if license is not None and spec.encoder_weights is not None:
        check_license(license, spec.license, str(folder))
    if classes is None:
        return load_folder(folder, registry=registry)
    names = class_names(classes)
    if not isinstance(plain_value(classes), list) and len(names) == len(spec.classes):
        names = spec.classes
    return load_folder(folder, names, registry)
