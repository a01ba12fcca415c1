"""The one place where a name or a folder becomes a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.console import remark
from zoo.errors import InputError
from zoo.files import sha256
from zoo.models.spec import ModelSpec, class_names, palette_for, per_channel

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.palette import Colour
    from zoo.registry.registry import Resolved

DEFAULT = "default"
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
    classes: int | list[str] | None = None,
    in_chans: int | None = None,
    encoder_weights: str | Path | None = DEFAULT,
    img_size: int | None = None,
    palette: list[Colour] | None = None,
    registry: Path | None = None,
    **options: Any,
) -> SegmentationModel:
    """Create a model from a name such as `unet-resnet18`, or load it from a folder.

    `model`: a registry name, a model folder, or a run folder (its best model).
    `classes`: a number or a list of names; needed for a name, and for a folder only to replace the
    layer that scores the classes. `encoder_weights` (names only): "default" for the tag's own from
    the Hub, a .safetensors file, or None for random weights. `img_size`: side in pixels that a
    fixed-size encoder is built for. `registry`: an overlay file. Other `options` are arguments of
    the decoder's constructor, such as `decoder_channels`.

    Raises InputError for what cannot be built, RunError where the Hub does not answer.
    """
    _check_options(options, encoder_weights, in_chans)
    folder = model_folder(model)
    if folder is not None:
        if in_chans is not None or img_size is not None or options or encoder_weights != DEFAULT:
            raise InputError(f"{model} is a trained model; only classes= can be changed.")
        return _from_folder(folder, classes)
    from zoo.models.build import build
    from zoo.registry.registry import resolve

    resolved = resolve(str(model), registry)
    if not resolved.supported:
        raise InputError(
            f"{resolved.name} is not supported: {resolved.reason}. "
            f"`zoo list --decoder {resolved.decoder}` lists the encoders that fit."
        )
    names = class_names(_needed(classes, str(model)))
    side = _fixed_side(resolved, img_size)
    encoder = _encoder_source(resolved, encoder_weights)
    spec = _describe(resolved, encoder, names, palette, in_chans or 3, side, options)
    return build(spec, encoder.file)


def _describe(
    resolved: Resolved,
    encoder: _Source,
    classes: list[str],
    palette: list[Colour] | None,
    in_chans: int,
    side: int | None,
    options: dict[str, Any],
) -> ModelSpec:
    from zoo.models.decoders import DECODERS

    decoder = DECODERS[resolved.decoder]
    resizes = resolved.row is not None and resolved.row.resizes == "img_size"
    return ModelSpec(
        name=resolved.name,
        decoder=resolved.decoder,
        encoder=resolved.timm_name,
        classes=classes,
        palette=palette_for(classes, palette),
        in_chans=in_chans,
        mean=per_channel(resolved.mean, in_chans),
        std=per_channel(resolved.std, in_chans),
        encoder_weights=encoder.identity,
        encoder_revision=encoder.revision,
        licence=resolved.licence if encoder.identity else None,
        encoder_args=resolved.encoder_args | ({"img_size": side} if resizes else {}),
        decoder_args=resolved.args | options,
        size_multiple=decoder.size_multiple,
        size_minimum=decoder.size_minimum,
        img_size=side,
        smp_loadable=resolved.smp_loadable,
    )


def model_folder(model: str | Path) -> Path | None:
    """The model folder that MODEL names: the folder itself, or best/ of a run; None for a name."""
    from zoo.hub.folder import is_model_folder

    path = Path(model)
    if path.is_dir():
        best = path / "best"
        if is_model_folder(best):
            return best
        return path
    if isinstance(model, Path) or "/" in str(model) or str(model).startswith("."):
        raise InputError(
            f"There is no folder {model}. Give a name, a model folder or a run folder."
        )
    return None


@dataclass(frozen=True)
class _Source:
    """Where an encoder's weights come from; `identity` is a tag, a hash or None for random."""

    file: Path | None = None
    identity: str | None = None
    revision: str | None = None


def _encoder_source(resolved: Resolved, encoder_weights: str | Path | None) -> _Source:
    """The file with the encoder's weights: none, the user's, the registry's or the Hub's."""
    if encoder_weights is None:
        return _Source()
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


def _from_folder(folder: Path, classes: int | list[str] | None) -> SegmentationModel:
    from zoo.hub.folder import load_folder, read_folder

    if classes is None:
        return load_folder(folder)
    names, stored = class_names(classes), read_folder(folder).spec.classes
    if isinstance(classes, int) and classes == len(stored):
        names = stored
    if names != stored:
        remark(
            f"{folder}: the layer that scores the classes is replaced ({len(stored)} -> "
            f"{len(names)} classes) and starts from random weights."
        )
    return load_folder(folder, names)
