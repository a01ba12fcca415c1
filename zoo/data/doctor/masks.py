"""Checks of masks: how they are stored, and which ids they hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from zoo.common.errors import shortened
from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE
from zoo.data.doctor.images import is_unturned
from zoo.data.doctor.look import MaskLook, Pair
from zoo.data.doctor.source import Fault, Source

ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
MOST_RIM = 0.15
"""Share of in-between edges: at most 0.05 in masks of seven public sets, at least 0.25 in the same
masks after bilinear scaling."""


def check_masks(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D301 to D315."""
    masks = [pair.mask for pair in pairs if pair.mask is not None]
    for pair in pairs:
        if pair.mask is not None:
            yield from _stored(pair.mask)
            yield from _size(pair, pair.mask)
    yield from _palettes(masks)
    readable = [mask for mask in masks if mask.ids]
    shifted = is_shifted(source, readable)
    if shifted:
        last = len(source.classes)
        yield Fault("D312", None, f"ids 1 to {last} for {last} classes; 0 occurs in no mask")
    binary = is_binary(source, readable)
    for mask in readable:
        yield from _ids(source, mask, binary, shifted)


def is_binary(source: Source, masks: Sequence[MaskLook]) -> bool:
    """Whether two classes are described and all their foreground is stored as an ignored 255."""
    ids = {value for mask in masks for value in mask.ids}
    return len(source.classes) == 2 and ids == {0, 255} and source.id_map.get(255) == IGNORE


def is_shifted(source: Source, masks: Sequence[MaskLook]) -> bool:
    """Whether the ids run from 1 to the number of classes, which is itself no class."""
    ids = {value for mask in masks for value in mask.ids if source.id_map.get(value) != IGNORE}
    count = len(source.classes)
    return bool(count and ids and count in ids and min(ids) == 1 and max(ids) == count)


def is_zero_255(source: Source, mask: MaskLook) -> bool:
    """Whether 255 stands for the second class in this mask, though the description says not so."""
    return bool(source.classes) and set(mask.ids) <= {0, 255} and 255 not in source.id_map


def _stored(mask: MaskLook) -> Iterator[Fault]:
    header = mask.header
    if header is None:
        if mask.problem:
            yield Fault("D301", mask.path, mask.problem.removeprefix(f"{mask.path} "))
    elif mask.lossy:
        yield Fault("D304", mask.path, header.format)
    elif mask.colour:
        code = "D306" if header.mode in ALPHA else "D305"
        yield Fault(code, mask.path, f"mode {header.mode}")
    elif mask.problem:
        yield Fault("D302", mask.path, mask.problem.removeprefix(f"{mask.path} "))
    elif header.mode.startswith("I"):
        yield Fault("D307", mask.path, f"ids up to {max(mask.ids)}")
    elif header.mode == "1":
        yield Fault("D308", mask.path)


def _size(pair: Pair, mask: MaskLook) -> Iterator[Fault]:
    if pair.image.problem or mask.problem or mask.size == pair.image.size or is_unturned(pair):
        return
    image = pair.image.size
    text = f"mask {mask.size[1]}x{mask.size[0]}, image {image[1]}x{image[0]}"
    yield Fault("D303", mask.path, text)


def _palettes(masks: Sequence[MaskLook]) -> Iterator[Fault]:
    """Palette masks in which an id has another colour than in most."""
    votes: defaultdict[int, Counter[Colour]] = defaultdict(Counter)
    for mask in masks:
        for value, colour in _colours(mask).items():
            votes[value][colour] += 1
    usual = {value: counter.most_common(1)[0][0] for value, counter in votes.items()}
    for mask in masks:
        other = [value for value, colour in _colours(mask).items() if colour != usual[value]]
        if other:
            yield Fault("D309", mask.path, f"ids {shortened(other, 8)}")


def _colours(mask: MaskLook) -> dict[int, Colour]:
    palette = mask.header.palette if mask.header else []
    return {value: palette[value] for value in mask.ids if value < len(palette)}


def _ids(source: Source, mask: MaskLook, binary: bool, shifted: bool) -> Iterator[Fault]:
    strange = [value for value in mask.ids if source.classes and value not in source.id_map]
    if mask.rim > MOST_RIM:
        also = f"; ids that are no class: {shortened(strange, 8)}" if strange else ""
        yield Fault("D313", mask.path, f"{100 * mask.rim:.0f} % of the edges{also}")
    if 255 in mask.ids and (binary or is_zero_255(source, mask)):
        yield Fault("D311", mask.path)
        return
    if shifted:
        strange = [value for value in strange if value != len(source.classes)]
    if strange:
        pixels = (f"{value} ({mask.ids[value]} pixels)" for value in sorted(strange))
        yield Fault("D310", mask.path, f"ids {shortened(pixels, 8)}")
    named = {source.id_map[value] for value in mask.ids if value in source.id_map}
    if source.classes and not strange and named == {IGNORE}:
        yield Fault("D314", mask.path)
    elif source.classes and not strange and not shifted and len(named - {IGNORE}) == 1:
        train_id = next(iter(named - {IGNORE}))
        yield Fault("D315", mask.path, source.classes[train_id])
