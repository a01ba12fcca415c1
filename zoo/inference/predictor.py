"""From images to index masks and coloured overlays."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.common.console import track
from zoo.common.errors import InputError, shortened
from zoo.creation.create import load_trained
from zoo.data.pixels.images import read_pixels
from zoo.data.pixels.opening import ARRAY_EXTENSIONS, IMAGE_EXTENSIONS
from zoo.data.pixels.overlay import as_rgb, overlay, save_index_png, save_png, with_legend
from zoo.inference.tiling import predict_ids
from zoo.models.segmentation import SegmentationModel
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import default_device

IMAGE_SUFFIXES = {*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS}


@dataclass(frozen=True)
class Prediction:
    """One image's result: `mask` is uint8 H x W with class ids, the files hold the same."""

    image: Path
    mask: NDArray[np.uint8]
    mask_file: Path | None
    overlay_file: Path | None


def predict(
    model: str | Path | SegmentationModel,
    inputs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    precision: str = "auto",
) -> list[Prediction]:
    """Segment images: `inputs` is a file, a folder, a glob or a list of these.

    Writes index masks and overlays below `out` if given. Each result holds the mask as uint8
    H x W with class ids.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not given:
        raise InputError("Nothing to predict: give at least one image, folder or pattern.")
    device = default_device()
    return list(
        predict_images(
            load_trained(model),
            given,
            None if out is None else Path(out),
            precision=resolve_precision(precision, device),
            device=device,
        )
    )


def predict_images(
    model: SegmentationModel,
    inputs: Sequence[str | Path],
    out: Path | None,
    *,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
) -> Iterator[Prediction]:
    """Segment every image that `inputs` names and write its mask and overlay below `out`.

    `out`/masks/NAME.png holds class ids (palette PNG, size of the image), `out`/overlays/NAME.png
    the mask over the image, with a legend. Without `out` nothing is written.
    """
    images = find_images(inputs)
    spec = model.to(device).eval().spec
    for path, name in track(images, "predict", len(images)):
        image = read_pixels(path, spec.in_chans, spec.value_range)
        mask = predict_mask(model, image, precision=precision, device=device)
        if out is None:
            yield Prediction(path, mask, None, None)
            continue
        target = name.with_name(name.name + ".png")
        mask_file, overlay_file = out / "masks" / target, out / "overlays" / target
        save_index_png(mask, spec.palette, mask_file)
        shown = overlay(as_rgb(image), mask, spec.palette)
        save_png(with_legend(shown, spec.classes, spec.palette, mask), overlay_file)
        yield Prediction(path, mask, mask_file, overlay_file)


def predict_mask(
    model: SegmentationModel, image: NDArray[np.uint8], **options: Any
) -> NDArray[np.uint8]:
    """Class ids, uint8 H x W, of one uint8 image H x W x C; the model must be in eval mode.

    `options` are those of `predict_ids`. Raises InputError where the channels differ.
    """
    if image.shape[2] != model.spec.in_chans:
        raise InputError(
            f"{model.spec.name} takes {model.spec.in_chans} channels, the image has "
            f"{image.shape[2]}."
        )
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
    ids: NDArray[np.uint8] = predict_ids(model, batch, **options)[0].cpu().numpy()
    return ids


def find_images(inputs: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """Every image that `inputs` names (files, folders or globs), each with a relative output name.

    Raises InputError where an input matches nothing or two images would get the same name.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given)
        if path.is_file():
            matches = [(path, Path(path.stem))]
        elif path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            matches = [(file, file.relative_to(path).with_suffix("")) for file in files]
        else:
            files = sorted(Path(f) for f in glob.glob(str(given), recursive=True))
            matches = [(f, Path(f.stem)) for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
        if not matches:
            raise InputError(
                f"{given} is not an image, a folder with images or a pattern that matches images. "
                f"Images end in {shortened(sorted(IMAGE_SUFFIXES))}."
            )
        for image, name in matches:
            if name in found and found[name] != image:
                raise InputError(
                    f"{found[name]} and {image} would both be written as {name}. "
                    "Give their common folder, or predict them into two folders."
                )
            found[name] = image
    return [(image, name) for name, image in found.items()]
