"""Checks of single images and masks: how they are stored, and what they hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from zoo.common.class_lists import Colour
from zoo.common.errors import shortened
from zoo.data.dataset import IGNORE, unpack
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Fault, Source
from zoo.data.inspect.grey import LOSSY_REACH, MOST_BETWEEN, ValueKind, kind_of_values, percent
from zoo.data.inspect.mask_looks import MaskLook
from zoo.data.inspect.scan import unused_bits

ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}
COLOUR_SPACES = {"CMYK", "YCbCr", "LAB", "HSV"}
IMAGE_KINDS = {"frames": "D209", "channels": "D216", "range": "D203", "unsupported": "D218"}
MASK_KINDS = {"frames": "D316", "samples": "D316", "range": "D317", "unsupported": "D317"}
"""The codes of intact files that cannot be read, by the kind of PixelError."""
LOW_SPREAD = 2.0
"""Standard deviation of the values in [0, 255] below which an image shows nothing."""
SMALLEST_SIDE = 48
WIDEST = 4.0
SIZE_RATIO = 16.0
MOST_RIM = 0.15
"""Fraction of in-between edges: at most 0.05 in masks of seven public data sets, at least 0.25 in
the same masks after bilinear resizing."""


def check_images(pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D201 to D218."""
    for pair in pairs:
        image, mask, header = pair.image, pair.mask, pair.image.header
        if image.problem:
            code = IMAGE_KINDS.get(image.kind, "D201" if header is None else "D202")
            yield Fault(code, image.path, image.problem.removeprefix(f"{image.path} "))
            continue
        if header is not None:
            if image.used_bits:
                yield Fault("D206", image.path)
            if header.mode in ALPHA_MODES:
                yield Fault("D207", image.path, f"mode {header.mode}")
            elif header.mode in COLOUR_SPACES:
                yield Fault("D208", image.path, f"mode {header.mode}")
        if image.constant:
            yield Fault("D210", image.path)
        elif image.spread < LOW_SPREAD:
            yield Fault("D211", image.path, f"standard deviation {image.spread:.1f} of 255")
        short, long = sorted(image.size)
        if short < SMALLEST_SIDE:
            yield Fault("D214", image.path, _shape(image.size))
        if long > WIDEST * short:
            yield Fault("D215", image.path, _shape(image.size))
        # an EXIF rotation that the mask does not share
        if header is None or header.orientation == 1:
            continue
        if mask is not None and mask.header and mask.header.orientation == header.orientation:
            continue
        if mask is not None and is_unrotated(pair):
            sizes = f"mask {_shape(mask.size)}, rotated image {_shape(image.size)}"
            yield Fault("D205", mask.path, sizes)
        else:
            yield Fault("D204", image.path, f"orientation {header.orientation}")
    images = [pair.image for pair in pairs if not pair.image.problem]
    plain = [image for image in images if not image.constant]
    gray = [image for image in plain if image.gray]
    colour = [image for image in plain if not image.gray]
    few, kind = (gray, "gray") if len(gray) <= len(colour) else (colour, "colour")
    if few and len(few) < len(plain):
        yield Fault("D212", None, f"{len(few)} of {len(plain)} images are {kind}")
        for image in few:
            yield Fault("D212", image.path, kind)
    depth = unused_bits([image.used_bits for image in images])
    if depth:
        yield Fault("D217", None, depth)
    areas = {image.size[0] * image.size[1]: image for image in images}
    if areas and max(areas) > SIZE_RATIO * min(areas):
        for area, word in ((min(areas), "smallest"), (max(areas), "largest")):
            yield Fault("D213", areas[area].path, f"{word}: {_shape(areas[area].size)}")


def is_unrotated(pair: Pair) -> bool:
    """Whether the mask has the size of the stored image but not of the rotated one."""
    header, mask = pair.image.header, pair.mask
    if header is None or mask is None or mask.problem or not mask.size[0]:
        return False
    return mask.size == header.size != pair.image.size


def levels_of(source: Source, pairs: Sequence[Pair]) -> ValueKind | None:
    """The grey levels of masks that are described as ids but have blurred edges, if they do."""
    found = [pair.mask for pair in pairs if pair.mask is not None]
    masks = [mask for mask in found if _grey_values(mask)]
    palettes = any(
        mask.ids and mask.header and mask.header.mode not in {"L", "1"} for mask in found
    )
    if source.dataset.decoder != "ids" or palettes or not masks:
        return None
    counts, between = Counter[int](), Counter[int]()
    for mask in masks:
        counts.update(_grey_values(mask))
        between.update(mask.between)
    judged = kind_of_values(counts, between, lossy=all(mask.lossy for mask in masks))
    return judged if judged.kind == "levels" else None


def _grey_values(mask: MaskLook) -> dict[int, int]:
    """The grey values of a mask; empty for palettes, colours, and more than 8 bits."""
    plain = mask.header is not None and mask.header.mode == "L"
    return mask.ids if plain and mask.ids else mask.grey


def check_masks(source: Source, pairs: Sequence[Pair], levels: ValueKind | None) -> Iterator[Fault]:
    """The faults D301 to D319; `levels` is the result of `levels_of`."""
    masks = [pair.mask for pair in pairs if pair.mask is not None]
    blurred = {
        mask.path: sum(n for value, n in values.items() if value not in levels.levels)
        for mask in masks
        if levels is not None and (values := _grey_values(mask))
    }
    for mask in masks:
        if levels is not None and mask.path in blurred and (blurred[mask.path] or not mask.ids):
            apart = percent(blurred[mask.path] / (mask.size[0] * mask.size[1]))
            drawn = ", ".join(map(str, levels.levels))
            stored = f"{mask.header.format}: " if mask.lossy and mask.header else ""
            yield Fault("D318", mask.path, f"{stored}{apart} of the pixels are not {drawn}")
    # how each mask is stored
    for pair, mask in ((pair, pair.mask) for pair in pairs if pair.mask is not None):
        header = mask.header
        if header is None:
            if mask.problem:
                yield Fault("D301", mask.path, mask.problem.removeprefix(f"{mask.path} "))
        elif mask.path in blurred and not mask.ids:
            pass  # D318
        elif mask.lossy and source.dataset.decoder != "grey":
            yield Fault("D304", mask.path, header.format)
        elif mask.colour and source.dataset.decoder == "ids":
            code = "D306" if header.mode in ALPHA_MODES else "D305"
            yield Fault(code, mask.path, f"mode {header.mode}")
        elif mask.problem:
            code = MASK_KINDS.get(mask.kind, "D302")
            yield Fault(code, mask.path, mask.problem.removeprefix(f"{mask.path} "))
        elif source.dataset.decoder != "ids":
            pass
        elif header.mode.startswith("I"):
            yield Fault("D307", mask.path, f"ids up to {max(mask.ids)}")
        elif header.mode == "1":
            yield Fault("D308", mask.path)
        decoded = not pair.image.problem and not mask.problem
        if decoded and mask.size != pair.image.size and not is_unrotated(pair):
            sizes = f"mask {_shape(mask.size)}, image {_shape(pair.image.size)}"
            yield Fault("D303", mask.path, sizes)
    if source.dataset.decoder == "ids":
        yield from _check_palettes(masks)
    # which ids each mask holds
    readable = [mask for mask in masks if mask.ids and mask.path not in blurred]
    last, binary = len(source.classes), is_binary(source, readable)
    shifted = is_shifted(source, readable)
    if shifted:
        yield Fault("D312", None, f"ids 1 to {last} for {last} classes; 0 occurs in no mask")
    for mask in readable:
        unknown = [value for value in mask.ids if source.classes and value not in source.id_map]
        if source.dataset.grey is not None:
            near = {
                value
                for level in source.dataset.grey
                for value in range(level - LOSSY_REACH, level + LOSSY_REACH + 1)
            }
            far = sum(number for value, number in mask.ids.items() if value not in near)
            fraction = far / sum(mask.ids.values())
            if fraction > MOST_BETWEEN:
                yield Fault("D319", mask.path, f"{percent(fraction)} of the pixels")
        if mask.rim > MOST_RIM:
            also = f"; ids without a class: {shortened(unknown, 8)}" if unknown else ""
            yield Fault("D313", mask.path, f"{100 * mask.rim:.0f} % of the edges{also}")
        if 255 in mask.ids and (binary or is_zero_255(source, mask)):
            yield Fault("D311", mask.path)
            continue
        if shifted:
            unknown = [value for value in unknown if value != last]
        if unknown:
            colours = source.dataset.decoder == "colours"
            pixels = (
                f"{unpack(value) if colours else value} ({mask.ids[value]} pixels)"
                for value in sorted(unknown)
            )
            what = "colours" if colours else "ids"
            yield Fault("D310", mask.path, f"{what} {shortened(pixels, 8)}")
        elif source.classes:
            named = {source.id_map[value] for value in mask.ids if value in source.id_map}
            if named == {IGNORE}:
                yield Fault("D314", mask.path)
            elif not shifted and len(named - {IGNORE}) == 1:
                yield Fault("D315", mask.path, source.classes[next(iter(named - {IGNORE}))])


def is_binary(source: Source, masks: Sequence[MaskLook]) -> bool:
    """Whether there are two classes and all foreground is stored as 255, which is ignored."""
    ids = {value for mask in masks for value in mask.ids}
    two = source.dataset.decoder == "ids" and len(source.classes) == 2
    return two and ids == {0, 255} and source.id_map.get(255) == IGNORE


def is_shifted(source: Source, masks: Sequence[MaskLook]) -> bool:
    """Whether the ids run from 1 to the number of classes, which is not a class id."""
    ids = {value for mask in masks for value in mask.ids if source.id_map.get(value) != IGNORE}
    count = len(source.classes) if source.dataset.decoder == "ids" else 0
    return bool(count and ids and count in ids and min(ids) == 1 and max(ids) == count)


def is_zero_255(source: Source, mask: MaskLook) -> bool:
    """Whether 255 means the second class in this mask, although dataset.yaml does not say so."""
    return bool(source.classes) and set(mask.ids) <= {0, 255} and 255 not in source.id_map


def _check_palettes(masks: Sequence[MaskLook]) -> Iterator[Fault]:
    """Palette masks in which an id has another colour than in most."""

    def colours(mask: MaskLook) -> dict[int, Colour]:
        palette = mask.header.palette if mask.header else []
        return {value: palette[value] for value in mask.ids if value < len(palette)}

    votes: defaultdict[int, Counter[Colour]] = defaultdict(Counter)
    for mask in masks:
        for value, colour in colours(mask).items():
            votes[value][colour] += 1
    usual = {value: counter.most_common(1)[0][0] for value, counter in votes.items()}
    for mask in masks:
        other = [value for value, colour in colours(mask).items() if colour != usual[value]]
        if other:
            yield Fault("D309", mask.path, f"ids {shortened(other, 8)}")


def _shape(size: tuple[int, int]) -> str:
    """(height, width) as `width x height`."""
    return f"{size[1]}x{size[0]}"
