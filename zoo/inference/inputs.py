"""What can be predicted: files, folders, patterns, and images that are in memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.common.console import info
from zoo.common.errors import InputError, printable, shortened, type_words
from zoo.common.files import written_files
from zoo.data.formats.pairs import list_files
from zoo.data.pixels.images import Pixels, array_pixels, picture_pixels, read_pixels
from zoo.data.pixels.opening import ARRAY_EXTENSIONS, IMAGE_EXTENSIONS, PixelError
from zoo.models.spec import ModelSpec

IMAGE_SUFFIXES = {*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS}
NAMED = 10
"""How many files a message names."""
GIVEN = (
    "Images are files, folders or patterns (text or Path), NumPy arrays H x W or H x W x C, PIL "
    "images, or uint8 tensors C x H x W, one or many"
)


@dataclass(frozen=True)
class Item:
    """One image to predict: `given` is a file or an image in memory, `name` that of its outputs."""

    image: Path | str
    name: str
    given: Any

    def pixels(self, spec: ModelSpec) -> Pixels:
        """The image as `spec` takes it, uint8 H x W x C. Raises InputError as `read_pixels`."""
        try:
            return self._pixels(spec)
        except PixelError as error:
            if error.found is None:
                raise
            raise InputError(
                f"{self.image} has {error.found} channels, {spec.name} takes {spec.in_chans}."
            ) from error

    def _pixels(self, spec: ModelSpec) -> Pixels:
        if isinstance(self.given, Path):
            return read_pixels(self.given, spec.in_chans, spec.value_range)
        if isinstance(self.given, Image.Image):
            return picture_pixels(self.given, spec.in_chans, spec.value_range, self.image)
        values = self.given
        if isinstance(values, torch.Tensor):
            values = _tensor_values(values, str(self.image))
        if not isinstance(values, np.ndarray):
            raise InputError(f"{self.image} is {type_words(values)}. {GIVEN}.")
        return array_pixels(values, spec.in_chans, spec.value_range, self.image)


def items_of(inputs: Any, out: Path | None = None) -> list[Item] | Iterator[Item]:
    """The images that `inputs` names or holds; a list unless they come one after another.

    Raises InputError for anything else than `GIVEN` says, and as `find_images` does.
    """
    if isinstance(inputs, str | Path):
        return _files([inputs], out)
    if _in_memory(inputs):
        return list(_numbered(inputs if getattr(inputs, "ndim", 0) == 4 else [inputs]))
    if not isinstance(inputs, Iterable):
        raise InputError(f"{GIVEN}; got {type_words(inputs)}.")
    if isinstance(inputs, Sequence):
        if any(isinstance(one, str | Path) for one in inputs):
            return _files(inputs, out)
        return list(_numbered(inputs))
    following = iter(inputs)
    first = list(itertools.islice(following, 1))
    if first and isinstance(first[0], str | Path):
        return _files([*first, *following], out)
    return _numbered(itertools.chain(first, following))


def _files(inputs: Sequence[Any], out: Path | None) -> list[Item]:
    for given in inputs:
        if not isinstance(given, str | Path):
            raise InputError(f"Give files or images in memory, not both: {type_words(given)}.")
    found = find_images(inputs, out)
    return [Item(path, name.as_posix(), path) for path, name in found]


def _numbered(images: Iterable[Any]) -> Iterator[Item]:
    for number, given in enumerate(images):
        yield Item(f"image {number}", f"{number:06d}", given)


def _in_memory(given: Any) -> bool:
    return isinstance(given, np.ndarray | Image.Image | torch.Tensor)


def _tensor_values(tensor: torch.Tensor, name: str) -> Any:
    """A tensor C x H x W, or H x W, as H x W x C. Raises InputError unless it is uint8."""
    if tensor.dtype != torch.uint8 or tensor.ndim not in (2, 3):
        raise InputError(
            f"{name} is a tensor of shape {tuple(tensor.shape)} and type "
            f"{str(tensor.dtype).removeprefix('torch.')}; give pixels as uint8 C x H x W, 0 to 255 "
            "and not normalised. Of numbers from 0 to 1: (images * 255).round().to(torch.uint8)."
        )
    values = tensor.detach().cpu().numpy()
    return values if values.ndim == 2 else values.transpose(1, 2, 0)


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
        if given == "":
            raise InputError(
                "An image, folder or pattern is empty text: is a variable of the shell not set? "
                "The working directory is '.'."
            )
        path = Path(given)
        if path.is_file():
            matches = [(path, Path(path.stem))]
        elif path.is_dir():
            matches = [(path / name, Path(name).with_suffix("")) for name in list_files(path)]
        elif path.exists():
            raise InputError(f"{given} is a pipe, a socket or a device, not an image.")
        else:
            matches = [(file, Path(file.stem)) for file in _matching(path)]
        if not path.is_file():
            matches = [m for m in matches if m[0].suffix.lower() in IMAGE_SUFFIXES]
            left_out += [image for image, _ in matches if not image.is_file()]
            root = path if path.is_dir() else _fixed(path)
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
                common = "" if found[name].parent == image.parent else "give their common folder, "
                raise InputError(
                    f"{found[name]} and {image} would both be written as {name}. Rename one, "
                    f"{common}or predict them into two folders."
                )
            found[name] = image
    if left_out:
        info(f"Left out, not files: {shortened(map(printable, left_out), NAMED)}.")
    return [(image, name) for name, image in found.items()]


def _fixed(pattern: Path) -> Path:
    """The folder in which a pattern is looked for: its parts before the first wildcard."""
    return Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), pattern.parts))


def _matching(pattern: Path) -> list[Path]:
    """What matches a pattern and is no folder; `**` stands for folders, not for links to them.

    Without hidden files, and those in hidden folders.
    """
    root = _fixed(pattern)
    parts = pattern.parts[len(root.parts) :]
    if not parts:
        return []
    text = "/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts)
    matches = {path: path.relative_to(root).parts for path in root.glob(text)}
    hidden = (path for path, names in matches.items() if any(name[0] == "." for name in names))
    return sorted(path for path in matches.keys() - set(hidden) if not path.is_dir())


def _place(path: Path) -> Path:
    """The same for every way to write a path; a link is not the file that it leads to."""
    return path.parent.resolve() / path.name
