"""The one place where a name or a folder becomes a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import sha256
from zoo.creation.locate import check_named, model_folder, named_weights, pulled, weights_by_key
from zoo.models.spec import ModelSpec, class_names, palette_for, per_channel
from zoo.registry.decoders import check_options
from zoo.registry.resolve import resolve
from zoo.registry.weights import Named, check_licence
from zoo.remote.address import is_address, parse_address

if TYPE_CHECKING:
    from zoo.common.class_lists import Colour
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.resolve import Resolved

DEFAULT = "default"
RENAMED = {
    "license": "licence",
    "num_classes": "classes",
    "in_channels": "in_chans",
    "pretrained": "encoder_weights (None for random weights)",
    "encoder_name": "the name itself, as in unet-resnet18",
    "encoder": "the name itself, as in unet-resnet18",
}


def create(
    model: str | Path,
    *,
    classes: int | list[str] | None = None,
    in_chans: int | None = None,
    encoder_weights: str | Path | None = DEFAULT,
    weights: str | Path | None = None,
    img_size: int | None = None,
    palette: list[Colour] | None = None,
    licence: str | None = None,
    registry: Path | None = None,
    **options: Any,
) -> SegmentationModel:
    """Create a model from a name such as `unet-resnet18`, or load a trained one.

    `model`: a registry name, a model folder, a run folder (its best model), or a repository on the
    Hub as `hf-hub:ORG/REPO[@REVISION]`. Some names stand for trained weights, such as
    `segformer-b0-ade20k`; with `encoder_weights` given they are architectures like the others.
    `weights` (names only): trained weights, by the name that the registry gives them, as a folder
    or as a repository. `classes`: a number or a list of names; needed for an architecture, and for
    a trained model only to replace the layer that scores the classes. `encoder_weights` (names
    only): "default" for the tag's own from the Hub, a .safetensors file, a timm repository as
    `hf-hub:ORG/REPO[@REVISION]`, or None for random weights. `img_size`: side in pixels that a
    fixed-size encoder is built for. `licence`: the terms that pretrained or trained weights have to
    come under, a pattern such as `mit`, or `open`. `registry`: an overlay file. Other `options` are
    arguments of the decoder's constructor, such as `decoder_channels`.

    Raises InputError for what cannot be built, RunError where the Hub does not answer.
    """
    _check_options(options, encoder_weights, in_chans)
    by_name = encoder_weights == DEFAULT
    changed = in_chans is not None or img_size is not None or bool(options) or not by_name
    if (named := _asked_for(model, weights, by_name, registry)) is not None:
        check_named(named, changed, licence)
        folder: Path | None = pulled(named, registry)
    else:
        folder = model_folder(model if weights is None else weights, registry, names=False)
    if folder is None:
        return _new(
            resolve(str(model), registry), classes, in_chans, encoder_weights, img_size, palette,
            licence, options,
        )  # fmt: skip
    if changed:
        raise InputError(f"{weights or model} is a trained model; only classes= can be changed.")
    if weights is not None:
        _check_architecture(str(model), folder, registry)
    return _from_folder(folder, classes, licence, registry)


def load_trained(model: str | Path | SegmentationModel) -> SegmentationModel:
    """A trained model from whatever names it; a model object is handed on.

    `model`: a run folder, a model folder, a repository or a name that stands for trained weights.
    Raises InputError for the name of an architecture, which has random class scores.
    """
    if not isinstance(model, str | Path):
        return model
    folder = model_folder(model)
    if folder is None:
        raise InputError(
            f"{model} is a name, and a name has random class scores. Give the folder of a trained "
            f"model, or train one: zoo finetune {model} --data DATA."
        )
    return create(folder)


def _asked_for(
    model: str | Path, weights: str | Path | None, by_name: bool, registry: Path | None
) -> Named | None:
    """The registry's trained weights that are asked for, by their key or by the name alone."""
    if weights is None:
        return named_weights(model, registry) if by_name else None
    if is_address(weights) or Path(weights).is_dir():
        return None
    return weights_by_key(str(model), str(weights), registry)


def _new(
    resolved: Resolved,
    classes: int | list[str] | None,
    in_chans: int | None,
    encoder_weights: str | Path | None,
    img_size: int | None,
    palette: list[Colour] | None,
    licence: str | None,
    options: dict[str, Any],
) -> SegmentationModel:
    """A model of an architecture, its encoder pretrained or not."""
    from zoo.hub.config import check_spec
    from zoo.models.build import build
    from zoo.registry.arguments import ENCODER_ARGS

    if not resolved.supported:
        raise InputError(
            f"{resolved.name} is not supported: {resolved.reason}. "
            f"`zoo list --decoder {resolved.decoder}` lists the encoders that fit."
        )
    check_options(
        resolved.decoder,
        resolved.args | options,
        adapted=resolved.adapted is not None,
        beside=ENCODER_ARGS if resolved.smp_loadable else (),
    )
    names = class_names(_needed(classes, resolved.name))
    side = _fixed_side(resolved, img_size)
    if licence is not None and encoder_weights == DEFAULT:
        check_licence(licence, resolved.licence, resolved.timm_name)
    encoder = _encoder_source(resolved, encoder_weights)
    spec = _describe(resolved, encoder, names, palette, in_chans or 3, side, options)
    if licence is not None and encoder.identity is not None:
        check_licence(licence, spec.licence, resolved.timm_name)
    made = build(spec, encoder.file)
    check_spec(spec, resolved.name)  # what could not be loaded again is not made
    return made


def _describe(
    resolved: Resolved,
    encoder: _Source,
    classes: list[str],
    palette: list[Colour] | None,
    in_chans: int,
    side: int | None,
    options: dict[str, Any],
) -> ModelSpec:
    from zoo.models.decoders import input_minimum, input_multiple

    row, in_smp = resolved.row, resolved.smp_loadable
    resizes = row is not None and row.resizes == "img_size"
    way = resolved.adapter_dilation(options)
    encoder_args = (way.encoder_args if way else {}) | resolved.encoder_args
    return ModelSpec(
        name=resolved.name,
        decoder=resolved.decoder,
        encoder=resolved.timm_name,
        classes=classes,
        palette=palette_for(classes, palette),
        in_chans=in_chans,
        mean=per_channel(encoder.mean or resolved.mean, in_chans),
        std=per_channel(encoder.std or resolved.std, in_chans),
        encoder_weights=encoder.identity,
        encoder_revision=encoder.revision,
        licence=encoder.licence or resolved.licence if encoder.identity else None,
        encoder_args=encoder_args | ({"img_size": side} if resizes else {}),
        decoder_args=resolved.args | options,
        dilated=way.dilated if way else None,
        size_multiple=input_multiple(resolved.decoder, row, in_smp),
        size_minimum=input_minimum(resolved.decoder, row),
        img_size=side,
        smp_loadable=resolved.smp_loadable,
    )


def _check_architecture(name: str, folder: Path, registry: Path | None) -> None:
    """Raise InputError where the trained model in `folder` is another net than `name`."""
    from zoo.hub.folder import read_folder

    wanted, spec = resolve(name, registry), read_folder(folder, registry).spec
    encoder = spec.encoder.partition(".")[0]
    if (spec.decoder, encoder) != (wanted.decoder, wanted.encoder):
        raise InputError(
            f"{folder} holds {spec.decoder}-{encoder}, not {name}. Leave the name out: "
            "zoo.create takes a folder or hf-hub:ORG/REPO by itself."
        )


@dataclass(frozen=True)
class _Source:
    """Where an encoder's weights come from; `identity` is a tag, a hash or None for random.

    `mean`, `std` and `licence` are given where they differ from what the registry says.
    """

    file: Path | None = None
    identity: str | None = None
    revision: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    licence: str | None = None


def _encoder_source(resolved: Resolved, encoder_weights: str | Path | None) -> _Source:
    """The file with the encoder's weights: none, the user's, the registry's or the Hub's."""
    if encoder_weights is None:
        return _Source()
    if is_address(encoder_weights):
        from zoo.hub.encoders import fetch_timm

        timm = fetch_timm(resolved.encoder, parse_address(str(encoder_weights)))
        identity = f"hf-hub:{timm.file.repo}"
        return _Source(
            timm.file.path, identity, timm.file.revision, timm.mean, timm.std, timm.licence
        )
    file = resolved.weights_file if encoder_weights == DEFAULT else Path(encoder_weights)
    if file is not None:
        if not file.is_file():
            raise InputError(
                f"There is no weights file {file}. Give a .safetensors file, leave encoder_weights "
                "out for the tag's own, or give None (on the command line: none)."
            )
        return _Source(file, f"sha256:{sha256(file)}")
    if resolved.hub_id is None or resolved.tag is None:
        raise InputError(
            f"timm has no pretrained weights for {resolved.timm_name}. "
            "Use encoder_weights=None (on the command line: --encoder-weights none)."
        )
    from zoo.hub.encoders import fetch_encoder

    fetched = fetch_encoder(resolved.encoder, resolved.tag, resolved.hub_id)
    return _Source(fetched.path, resolved.tag, fetched.revision)


def _fixed_side(resolved: Resolved, img_size: int | None) -> int | None:
    """The side of the only square that the encoder takes, in pixels; None where it takes any size.

    Raises InputError where `img_size` is given and the encoder cannot be built for a size.
    """
    row = resolved.row
    if row is None or row.resizes == "any":
        if img_size is not None:
            raise InputError(f"{resolved.encoder} takes images of any size; leave img_size out.")
        return None
    native = int(row.input_size.split("/")[1])
    if img_size is None:
        return native
    if row.resizes == "no":
        raise InputError(
            f"{resolved.encoder} takes {native} x {native} pixels only (larger images are seen "
            "through windows of that size); leave img_size out."
        )
    return img_size


def _needed(classes: int | list[str] | None, model: str) -> int | list[str]:
    if classes is None or classes in (0, []):
        raise InputError(
            f"{model} needs classes=, a number or a list of names, "
            f'for example zoo.create("{model}", classes=["background", "road"]).'
        )
    if isinstance(classes, int) and not 1 <= classes <= 255:
        raise InputError(f"classes is {classes}; allowed are 1 to 255.")
    return classes


def _check_options(options: dict[str, Any], encoder_weights: object, in_chans: int | None) -> None:
    if in_chans is not None and in_chans < 1:
        raise InputError(f"in_chans is {in_chans}; a model needs at least one input channel.")
    for name, right in RENAMED.items():
        if name in options:
            raise InputError(f"{name}= is not an argument of zoo.create; use {right}.")
    if encoder_weights == "imagenet" or isinstance(encoder_weights, bool):
        raise InputError(
            f"encoder_weights={encoder_weights!r} does not say which weights. Leave it out for the "
            "tag's own, choose a tag in the name (unet-resnet18.a1_in1k), give a .safetensors "
            "file, or None for random weights."
        )


def _from_folder(
    folder: Path, classes: int | list[str] | None, licence: str | None, registry: Path | None
) -> SegmentationModel:
    from zoo.hub.folder import load_folder, read_folder

    spec = read_folder(folder, registry).spec
    if licence is not None and spec.encoder_weights is not None:
        check_licence(licence, spec.licence, str(folder))
    if classes is None:
        return load_folder(folder, registry=registry)
    names = class_names(classes)
    if isinstance(classes, int) and classes == len(spec.classes):
        names = spec.classes
    if names != spec.classes:
        info(
            f"{folder}: the layer that scores the classes is replaced ({len(spec.classes)} -> "
            f"{len(names)} classes) and starts from random weights."
        )
    return load_folder(folder, names, registry)
