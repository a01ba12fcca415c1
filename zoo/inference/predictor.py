"""From images to index masks and coloured overlays."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.common.console import info, track
from zoo.common.errors import (
    InputError,
    RunError,
    indented,
    join_problems,
    printable,
    shortened,
    type_words,
)
from zoo.common.files import OutputFolder, written_files
from zoo.creation.create import load_trained
from zoo.data.dataset import Dataset
from zoo.data.formats.pairs import list_files
from zoo.data.load import load_dataset
from zoo.data.pixels.images import read_pixels
from zoo.data.pixels.masks import png
from zoo.data.pixels.opening import ARRAY_EXTENSIONS, IMAGE_EXTENSIONS
from zoo.data.pixels.overlay import (
    as_rgb,
    background_id,
    checked_index_png,
    overlay,
    with_legend,
)
from zoo.data.split import as_recorded, recorded_data
from zoo.inference.tiling import predict_ids
from zoo.models.layers import in_eval_mode
from zoo.models.segmentation import SegmentationModel
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import default_device

IMAGE_SUFFIXES = {*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS}
NAMED = 10
"""How many broken images an error names."""


@dataclass(frozen=True)
class Prediction:
    """One image's result: `mask` is uint8 H x W with class ids, the files hold the same."""

    image: Path
    mask: NDArray[np.uint8]
    mask_file: Path | None
    overlay_file: Path | None


class BrokenImagesError(RunError):
    """Some images cannot be predicted; `predictions` are those of all others."""

    predictions: Sequence[Prediction] = ()


def predict(
    model: str | Path | SegmentationModel,
    inputs: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path | None = None,
    split: str | None = None,
    data: str | Path | Dataset | None = None,
    background: str = "auto",
    overwrite: bool = False,
    precision: str = "auto",
) -> list[Prediction]:
    """Segment images: `inputs` is a file, a folder, a glob or a list of these.

    Instead of them, `split` names a split of `data`, by default of the data set that the run
    `model` was trained on. Each result holds the mask as uint8 H x W with class ids. With `out`,
    writes index masks and overlays below it; `background` is the class that overlays leave
    unpainted, see `background_id`.

    Raises InputError before anything is predicted where `OutputFolder` refuses `out` (`overwrite`
    allows other files to be replaced), and where not one image can be predicted;
    BrokenImagesError at the end where some cannot.
    """
    named: Sequence[Any] = inputs if isinstance(inputs, list | tuple) else [inputs]
    given = [value for value in named if isinstance(value, str | Path)]
    if wrong := [value for value in named if not isinstance(value, str | Path | None)]:
        raise InputError(
            "Images are given as files, folders or patterns (text or Path), got "
            f"{type_words(wrong[0])}. Save arrays and images as files first."
        )
    if split is None and data is not None:
        raise InputError("data= (--data) goes with split= (--split): name a split of the data set.")
    if (split is None) == (not given):
        raise InputError(
            "Nothing to predict: give at least one image, folder or pattern, or a split (--split)."
            if not given
            else "Give either images or a split (--split), not both."
        )
    loaded = load_trained(model)
    folder = None if out is None else Path(out)
    kept: list[Path] = []
    if split is None:
        images = find_images(given, folder)
    else:
        dataset = _data_of_run(model) if data is None else load_dataset(data)
        if isinstance(model, str | Path):
            dataset = as_recorded(dataset, model, split)
        samples = dataset.samples(split, masks=False)
        images = [(sample.image, Path(sample.name)) for sample in samples]
        kept = [sample.mask for sample in samples if sample.mask is not None]
    device = default_device()
    made = predict_images(
        loaded,
        images,
        folder,
        kept=kept,
        background=background,
        overwrite=overwrite,
        precision=resolve_precision(precision, device),
        device=device,
    )
    done: list[Prediction] = []
    try:
        done.extend(made)
    except BrokenImagesError as error:
        error.predictions = done
        raise
    return done


def predict_images(
    model: SegmentationModel,
    images: Sequence[tuple[Path, Path]],
    out: Path | None,
    *,
    kept: Sequence[Path] = (),
    background: str = "auto",
    overwrite: bool = False,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
) -> Iterator[Prediction]:
    """Segment images, each with its name for the output, and write mask and overlay below `out`.

    `out`/masks/NAME.png holds class ids (palette PNG, size of the image), `out`/overlays/NAME.png
    the mask over the image, with a legend. Without `out` nothing is written. `kept` are files that
    may not be written to, besides the images. The model's mode is restored after each image. Raises
    as `predict` does.
    """
    spec = model.to(device).spec
    colours = spec.id_palette
    unpainted = background_id(spec.id_names, background)
    files = [
        (f"masks/{name.as_posix()}.png", f"overlays/{name.as_posix()}.png") for _, name in images
    ]
    target = None
    if out is not None:
        names = [name for pair in files for name in pair]
        inputs = [*(path for path, _ in images), *kept]
        target = OutputFolder(out, names, inputs=inputs, overwrite=overwrite)
    broken: list[str] = []
    for (path, _), (mask_name, overlay_name) in track(
        zip(images, files, strict=True), "predict", len(images)
    ):
        try:
            image = read_pixels(path, spec.in_chans, spec.value_range)
            with in_eval_mode(model):
                mask = predict_mask(model, image, precision=precision, device=device)
        except InputError as error:
            said = indented(error)
            broken.append(said if str(path) in said else f"{path}: {said}")
            continue
        if target is None:
            yield Prediction(path, mask, None, None)
            continue
        shown = overlay(as_rgb(image), mask, colours, background=unpainted)
        shown = with_legend(shown, spec.id_names, colours, mask, background=unpainted)
        mask_file = target.write(mask_name, checked_index_png(mask, colours))
        yield Prediction(path, mask, mask_file, target.write(overlay_name, png(shown)))
    if broken:
        header = f"{len(broken)} of {len(images)} images cannot be predicted"
        if len(broken) == len(images):
            raise InputError(join_problems(f"{header}:", broken, NAMED))
        raise BrokenImagesError(join_problems(f"{header}, the others are done:", broken, NAMED))


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


def find_images(inputs: Sequence[str | Path], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Every image that `inputs` names (files, folders or globs), each with a relative output name.

    In folders and patterns, hidden files, what is no file (pipes, broken links), and what zoo wrote
    there or into `out` before are left out. An image that is named twice is predicted once. Raises
    InputError where an input matches nothing or two images would get the same name.
    """
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    left_out: list[Path] = []
    ours = set() if out is None else {_place(path) for path in written_files(out)}
    for given in inputs:
        path = Path(given)
        if path.is_file():
            matches = [(path, Path(path.stem))]
        elif path.is_dir():
            matches = [(path / name, Path(name).with_suffix("")) for name in list_files(path)]
        elif path.exists():
            raise InputError(f"{given} is a pipe, a socket or a device, not an image.")
        else:
            files = sorted(Path(f) for f in glob.glob(str(given), recursive=True))
            matches = [(f, Path(f.stem)) for f in files if not f.is_dir()]
        if not path.is_file():
            matches = [m for m in matches if m[0].suffix.lower() in IMAGE_SUFFIXES]
            left_out += [image for image, _ in matches if not image.is_file()]
            fixed = itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts)
            root = path if path.is_dir() else Path(*fixed)
            for folder in {parent for image, _ in matches for parent in image.parents}:
                if folder == root or root in folder.parents:
                    ours |= {_place(file) for file in written_files(folder)}
            matches = [m for m in matches if m[0].is_file() and _place(m[0]) not in ours]
        if not matches:
            raise InputError(
                f"{given} is not an image, a folder with images or a pattern that matches images. "
                f"Images end in {shortened(sorted(IMAGE_SUFFIXES))}."
            )
        for image, name in matches:
            if _place(image) in seen:
                continue
            seen.add(_place(image))
            if name in found:
                raise InputError(
                    f"{found[name]} and {image} would both be written as {name}. Rename one, give "
                    "their common folder, or predict them into two folders."
                )
            found[name] = image
    if left_out:
        info(f"Left out, not files: {shortened(map(printable, left_out), NAMED)}.")
    return [(image, name) for name, image in found.items()]


def _place(path: Path) -> Path:
    """The same for every way to write a path; a link is not the file that it leads to."""
    return path.parent.resolve() / path.name


def _data_of_run(model: str | Path | SegmentationModel) -> Dataset:
    """The data set that a run was trained on, from where its run.json says that it was."""
    recorded = None if isinstance(model, SegmentationModel) else recorded_data(model)
    if recorded is None:
        raise InputError(
            "A split without --data (data=) needs a run folder, which knows its data. Give --data."
        )
    source = recorded.get("source")
    if not isinstance(source, str):
        raise InputError(f"{model} does not say where its data is. Give it by --data (data=).")
    try:
        return load_dataset(source)
    except InputError as error:
        raise InputError(
            f"The data that {model} was trained on cannot be used; --data (data=) says where it is "
            f"now. {error}"
        ) from error
