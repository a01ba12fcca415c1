"""The description of a model: all that training and inference must agree on. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from zoo.common.class_lists import Colour, default_palette
from zoo.common.errors import InputError, brief, shortened, type_words
from zoo.common.schema import plain_value
from zoo.registry.decoders import defaults, input_minimum, input_multiple
from zoo.registry.encoders import MAX_SIDE, Encoder
from zoo.registry.recipe import InputScale
from zoo.registry.resolve import Resolved

Count = Annotated[int, Field(ge=1)]
ImageSize = Annotated[
    Annotated[Count, Tag("side")]
    | Annotated[tuple[Count, Count], Field(strict=False), Tag("height_width")],
    Discriminator(lambda given: "height_width" if isinstance(given, list | tuple) else "side"),
]
"""The side of a square, or height and width."""

MOST_CLASSES = 255
BACKGROUND = "background"
EXAMPLE = 256
"""The side in pixels of an image by which a network is tried out."""


class ModelSpec(BaseModel):
    """The description that travels with a model's weights.

    `mean` and `std` are per input channel and apply to pixels scaled to [0, 1]. `ignore_index` is
    the id of pixels without a label. `encoder_weights` is a timm tag, `sha256:` with the hash
    of a local file, or None for random weights. `dilated` is the output stride that zoo dilates the
    encoder to where timm cannot, else None. `size_multiple` and `size_minimum` are in pixels;
    `img_size` is the side of the square, or the height and width, that a fixed-size encoder was
    built for: larger images are seen through windows of it. None stands for a network that sees
    every image whole, which many transformers do with `dynamic_img_size` in `encoder_args`.
    `value_range` are the stored pixel values that became 0 and 255, None for 8-bit images. `norm`
    is "group" where every BatchNorm of the network was replaced by a GroupNorm.

    An image is resized for the network: its shorter side to `input_side` pixels (None: unchanged),
    then both sides are multiplied by `input_scale`. Logits and metrics still have the image's own
    size.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
    )

    name: str
    decoder: str
    encoder: str
    classes: list[str] = Field(min_length=1, max_length=MOST_CLASSES)
    palette: list[Annotated[Colour, Field(strict=False)]]
    ignore_index: int = 255
    in_chans: Count = 3
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    encoder_weights: str | None = None
    encoder_revision: str | None = None
    license: str | None = Field(default=None, alias="licence")
    encoder_args: dict[str, Any] = Field(default_factory=dict)
    decoder_args: dict[str, Any] = Field(default_factory=dict)
    dilated: Literal[8, 16] | None = None
    size_multiple: Count = 32
    size_minimum: Count = 32
    img_size: ImageSize | None = None
    value_range: Annotated[tuple[float, float], Field(strict=False)] | None = None
    norm: Literal["batch", "group"] = "batch"
    input_side: Count | None = None
    input_scale: InputScale = 1.0
    smp_loadable: bool = True

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} colours for {len(self.classes)} classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names must differ from each other")
        if len(self.mean) != self.in_chans or len(self.std) != self.in_chans:
            raise ValueError(f"mean and std need {self.in_chans} values each")
        return self

    @property
    def id_names(self) -> list[str]:
        """The names of the ids that masks hold, from 0 on.

        A model of one class has one logit per pixel: id 1 is the class, where the logit is above 0,
        and id 0 the background.
        """
        if len(self.classes) > 1:
            return list(self.classes)
        return ["rest" if self.classes == [BACKGROUND] else BACKGROUND, *self.classes]

    @property
    def id_palette(self) -> list[Colour]:
        """The colours of these ids; the background of a model of one class is black."""
        if len(self.classes) > 1:
            return list(self.palette)
        black, usual = default_palette(2)
        return [black, usual if self.palette[0] == black else self.palette[0]]

    def predicts(self, classes: Sequence[str]) -> bool:
        """Whether the ids of data with these classes are those that the model predicts.

        They are its classes, in their order; for a model of one class, the background, whatever it
        is called, and the class.
        """
        added = len(self.id_names) - len(self.classes)
        return list(classes[added:]) == self.classes and len(classes) == len(self.id_names)

    @property
    def window(self) -> tuple[int, int] | None:
        """`img_size` as height and width in pixels."""
        size = self.img_size
        return (size, size) if isinstance(size, int) else size

    @property
    def sizes(self) -> Literal["dynamic", "windows"] | None:
        """How images of another size than the encoder's own are taken; None where it has none."""
        if self.window is not None:
            return "windows"
        return "dynamic" if self.encoder_args.get("dynamic_img_size") else None

    def example_size(self) -> tuple[int, int]:
        """Height and width in pixels of an image that the network takes as it is."""
        multiple = self.size_multiple
        side = -(-max(EXAMPLE, self.size_minimum) // multiple) * multiple
        return self.window or (side, side)

    def input_factor(self, height: int, width: int) -> float:
        """The factor by which an image of this size, in pixels, is resized before the network."""
        return size_factor(height, width, self.input_side, self.input_scale)

    def input_steps(self) -> str:
        """In words what happens to an image's size before the network; empty for nothing."""
        side = [] if self.input_side is None else [f"shorter side to {self.input_side} pixels"]
        scale = [] if self.input_scale == 1 else [f"times {self.input_scale:g}"]
        return ", then ".join([*side, *scale])

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of what the network sees of an image of this size."""
        return scaled_size((height, width), self.input_factor(height, width))


def model_spec(
    resolved: Resolved,
    classes: int | Sequence[str],
    *,
    palette: Sequence[Sequence[int]] | None = None,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    encoder_args: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """The description, with random weights, of what the registry says of a model.

    `classes` is a number or a list of names, `img_size` the side, or height and width, in pixels
    that an encoder is built for which does not take any size as it is. `encoder_args` are arguments
    of timm's builder that take precedence over the registry's, `options` those of the decoder.
    Raises InputError for classes, colours, channels and sizes that the model does not take.
    """
    options, row = dict(options or {}), resolved.row
    names = class_names(classes)
    in_chans = whole_number("in_chans", in_chans, "a number of input channels")
    if len(names) == 1 and "queries" in defaults(resolved.decoder):
        raise InputError(
            f"{resolved.decoder} chooses between classes, so it needs two at least: give "
            f'classes=["{BACKGROUND}", "{names[0]}"].'
        )

    # what the encoder is built with, and the only size that it then takes, if there is one
    way = resolved.adapter_dilation(options)
    asked = dict(encoder_args or {})
    if "dynamic_img_size" in options:  # SMP's DPT has it among its own
        asked["dynamic_img_size"] = options.pop("dynamic_img_size")
    if img_size is not None:
        asked["img_size"] = img_size
    given = (way.encoder_args if way else {}) | resolved.encoder_args | asked
    fixed = given.get("img_size")
    if row is not None:
        fixed = _fit_size(given, row)
    return ModelSpec(
        name=resolved.name,
        decoder=resolved.decoder,
        encoder=resolved.timm_name,
        classes=names,
        palette=palette_for(names, palette),
        in_chans=in_chans,
        mean=per_channel(resolved.mean, in_chans),
        std=per_channel(resolved.std, in_chans),
        encoder_args=given,
        decoder_args=resolved.args | options,
        dilated=way.dilated if way else None,
        size_multiple=input_multiple(resolved.decoder, row, resolved.adapted is None),
        size_minimum=input_minimum(resolved.decoder, row, resolved.args | options),
        img_size=fixed,
        smp_loadable=resolved.adapted is None,
    )


def size_factor(height: int, width: int, side: int | None, scale: float) -> float:
    """The factor that brings the shorter of two sides to `side` (None: unchanged) times `scale`.

    TorchScript compiles this function and `scaled_size`.
    """
    return scale if side is None else scale * (side / min(height, width))


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) times `factor`, in whole pixels, none below 1."""
    height, width = size
    return max(1, int(round(height * factor))), max(1, int(round(width * factor)))  # noqa: RUF046


def class_names(classes: int | Sequence[str]) -> list[str]:
    """Names of the classes: a list as it is, a number `n` as class_0 ... class_(n-1).

    Numbers are whole ones of any kind, lists may be tuples or arrays of text. Raises InputError
    for everything else, and for names that are empty or alike.
    """
    given = plain_value(classes)
    if type(given) is int:
        if not 1 <= given <= MOST_CLASSES:
            raise InputError(f"classes is {given}; allowed are 1 to {MOST_CLASSES}.")
        return [f"class_{index}" for index in range(given)]
    if not isinstance(given, list):
        hint = ""
        if isinstance(given, str):
            hint = f" Write classes={given if given.isdecimal() else [given]}."
        elif isinstance(given, float) and given.is_integer():
            hint = f" Write classes={int(given)}."
        elif isinstance(given, set | frozenset | dict):
            hint = " Class ids follow the order of the names, so give a list."
        raise InputError(
            f"classes should be a number from 1 to {MOST_CLASSES} or a list of names, got "
            f"{type_words(classes)}.{hint}"
        )
    if numbers := [name for name in given if not isinstance(name, str)]:
        raise InputError(
            f"classes lists {brief(numbers[0])}, which is not a name. Give a list of texts, or "
            f"their number: classes={len(given)}."
        )
    problems = []
    if not 1 <= len(given) <= MOST_CLASSES:
        problems.append(f"{len(given)} names; allowed are 1 to {MOST_CLASSES}")
    if twice := [name for name, count in Counter(given).items() if count > 1]:
        problems.append(f"the same name twice: {shortened(map(brief, twice), 3)}")
    if any(not name.strip() for name in given):
        problems.append("an empty name")
    if broken := [name for name in given if any("\ud800" <= c <= "\udfff" for c in name)]:
        problems.append(f"a name that is not valid Unicode: {ascii(broken[0])[:60]}")
    if problems:
        raise InputError(f"classes has {'; '.join(problems)}.")
    return given


def palette_for(classes: list[str], palette: Sequence[Sequence[int]] | None) -> list[Colour]:
    """The given colours, or the default ones.

    Raises InputError unless there is one (red, green, blue), each in [0, 255], for each class.
    """
    if palette is None:
        return default_palette(len(classes))
    given = plain_value(palette)
    if not isinstance(given, list):
        raise InputError(
            "palette should be a list of colours (red, green, blue), one for each class, got "
            f"{type_words(palette)}."
        )
    colours: list[Colour] = []
    for colour in given:
        values = colour if isinstance(colour, list) else []
        if [type(value) for value in values] != [int] * 3 or not all(0 <= v <= 255 for v in values):
            raise InputError(
                f"palette has {brief(colour)}; a colour is (red, green, blue), whole numbers from "
                "0 to 255, such as (255, 0, 0)."
            )
        colours.append((values[0], values[1], values[2]))
    if len(colours) != len(classes):
        raise InputError(f"palette has {len(colours)} colours for {len(classes)} classes.")
    return colours


def whole_number(name: str, value: object, meaning: str) -> int:
    """`value` as an int, whatever kind of whole number it is. Raises InputError for all else.

    `name` is the argument, `meaning` what it is; it must be between 1 and `MAX_SIDE`.
    """
    given = plain_value(value)
    if type(given) is not int or not 1 <= given <= MAX_SIDE:
        raise InputError(
            f"{name} should be {meaning}, a whole number from 1 to {MAX_SIDE}, got "
            f"{type_words(value)}."
        )
    return given


def _fit_size(given: dict[str, Any], encoder: Encoder) -> int | list[int] | None:
    """Complete the arguments `given` of an encoder by those on sizes.

    Returns the side, or [height, width], of the only images that the encoder then takes, None where
    it takes all. Raises InputError for a size that it cannot be built for.
    """
    way, name = encoder.resizes, encoder.name
    native: int | list[int] = _as_square(encoder.native_size())
    size = plain_value(given.get("img_size"))
    if size is not None:
        if way == "any":
            raise InputError(f"{name} takes images of any size; leave img_size out.")
        if way == "no":
            words = " x ".join(map(str, encoder.native_size()))
            raise InputError(
                f"{name} takes {words} pixels only (larger images take sliding-window "
                "inference); leave img_size out."
            )
        size = given["img_size"] = _sides(size, given["img_size"], encoder)
        step = encoder.size_step
        sides = size if isinstance(size, list) else [size]
        if any(side % step for side in sides):
            larger = " x ".join(str(-(-side // step) * step) for side in sides)
            raise InputError(
                f"img_size is {' x '.join(map(str, sides))}; {name} takes patches of {step} "
                f"pixels, so both sides must be multiples of {step}. Try {larger}."
            )
    if way == "any" or (way == "dynamic" and given.setdefault("dynamic_img_size", True)):
        return None
    if size is None and way != "no":
        given["img_size"] = native
    return native if size is None else size


def _sides(size: Any, img_size: object, encoder: Encoder) -> int | list[int]:
    """`size`, a plain value of what was given as `img_size`: the side of a square, or two sides.

    Raises InputError for what the encoder cannot be built for.
    """
    size = _as_square(size) if isinstance(size, list) else size
    if not isinstance(size, list):
        return whole_number("img_size", size, "the side of a square in pixels")
    if encoder.resizes == "img_size":
        raise InputError(
            f"img_size is {brief(img_size)}; {encoder.name} is built for squares only. Give one "
            "side in pixels; images of other shapes take sliding-window inference."
        )
    if len(size) != 2:
        raise InputError(
            f"img_size is {brief(img_size)}; give one side in pixels, or height and width."
        )
    return [whole_number("img_size", side, "height and width in pixels") for side in size]


def _as_square(size: list[Any]) -> Any:
    """The side of a square that has `size`; other sizes as they are."""
    return size[0] if len(size) == 2 and len(set(map(str, size))) == 1 else size


def per_channel(values: list[float], in_chans: int) -> list[float]:
    """Repeat the per-channel statistics of an RGB encoder cyclically for `in_chans` channels."""
    return [values[index % len(values)] for index in range(in_chans)]
