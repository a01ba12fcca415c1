"""Checks of single images, and of how they differ from each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zoo.data.doctor.look import ImageLook, Pair
from zoo.data.doctor.source import Fault

PLAIN_MODES = {"1", "L", "P", "RGB", "RGBA", "LA", "PA", "La", "RGBa", "F"}
ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}
LOW_SPREAD = 2.0
"""Standard deviation of the values in [0, 255] below which a picture shows nothing."""
SMALLEST_SIDE = 48
WIDEST = 4.0
SIZE_RATIO = 16.0


def check_images(pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D201 to D215."""
    for pair in pairs:
        yield from _readable(pair.image)
        if not pair.image.problem:
            yield from _stored(pair.image)
            yield from _seen(pair.image)
        yield from _turned(pair)
    images = [pair.image for pair in pairs if not pair.image.problem]
    yield from _mixed(images)
    yield from _sizes(images)


def _readable(image: ImageLook) -> Iterator[Fault]:
    if not image.problem:
        return
    if image.header is None:
        code = "D201"
    elif image.header.mode == "F" or image.header.mode.startswith("I"):
        code = "D203"
    else:
        code = "D202"
    yield Fault(code, image.path, image.problem.removeprefix(f"{image.path} "))


def _stored(image: ImageLook) -> Iterator[Fault]:
    """What the header says, of an image that can be decoded."""
    header = image.header
    if header is None:
        return
    if header.mode.startswith("I"):
        yield Fault("D206", image.path)
    elif header.mode in ALPHA_MODES:
        yield Fault("D207", image.path, f"mode {header.mode}")
    elif header.mode not in PLAIN_MODES:
        yield Fault("D208", image.path, f"mode {header.mode}")
    if header.frames > 1:
        yield Fault("D209", image.path, f"{header.frames} frames")


def _seen(image: ImageLook) -> Iterator[Fault]:
    """What the pixels show."""
    if image.constant:
        yield Fault("D210", image.path)
    elif image.spread < LOW_SPREAD:
        yield Fault("D211", image.path, f"standard deviation {image.spread:.1f} of 255")
    short, long = sorted(image.size)
    shape = f"{image.size[1]}x{image.size[0]}"
    if short < SMALLEST_SIDE:
        yield Fault("D214", image.path, shape)
    if long > WIDEST * short:
        yield Fault("D215", image.path, shape)


def _turned(pair: Pair) -> Iterator[Fault]:
    """An EXIF turn that the mask does not share."""
    header, mask = pair.image.header, pair.mask
    if header is None or pair.image.problem or header.orientation == 1:
        return
    if mask is not None and mask.header and mask.header.orientation == header.orientation:
        return
    if mask is not None and is_unturned(pair):
        text = f"the mask is {mask.size[1]}x{mask.size[0]}, the turned image "
        yield Fault("D205", mask.path, f"{text}{pair.image.size[1]}x{pair.image.size[0]}")
    else:
        yield Fault("D204", pair.image.path, f"orientation {header.orientation}")


def is_unturned(pair: Pair) -> bool:
    """Whether the mask has the size of the stored image but not of the turned one."""
    header, mask = pair.image.header, pair.mask
    if header is None or mask is None or mask.problem or mask.header is None:
        return False
    return mask.size == header.size != pair.image.size


def _mixed(images: Sequence[ImageLook]) -> Iterator[Fault]:
    """The rarer of gray and colour images, where it is less than a half."""
    plain = [image for image in images if not image.constant]
    gray = [image for image in plain if image.gray]
    colour = [image for image in plain if not image.gray]
    few, kind = (gray, "gray") if len(gray) <= len(colour) else (colour, "colour")
    if few and len(few) < len(plain):
        yield Fault("D212", None, f"{len(few)} of {len(plain)} images are {kind}")
        for image in few:
            yield Fault("D212", image.path, kind)


def _sizes(images: Sequence[ImageLook]) -> Iterator[Fault]:
    if not images:
        return
    areas = {image.size[0] * image.size[1]: image for image in images}
    small, large = areas[min(areas)], areas[max(areas)]
    if max(areas) > SIZE_RATIO * min(areas):
        for image, word in ((small, "smallest"), (large, "largest")):
            yield Fault("D213", image.path, f"{word}: {image.size[1]}x{image.size[0]}")
