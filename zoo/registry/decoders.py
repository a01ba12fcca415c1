"""The decoder table: a row for every decoder, and the options that it takes. No torch.

A decoder is a class of segmentation-models-pytorch (SMP), or a module in `zoo.models.heads` that
has the decoder's name. A new one is one row here and, where it is a custom head, one such module.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from zoo.common.errors import InputError, RunError, brief, join_problems, nearest
from zoo.common.schema import Strict, dotted, problems, written_as
from zoo.registry.encoders import MAX_NUMBER, Encoder, Where, fits, matches


class Divisible(Strict):
    """The channels of the feature map at `stride` must be a multiple of `by`."""

    stride: Annotated[int, Field(ge=1)]
    by: Annotated[int, Field(ge=1)]


class Needs(Strict):
    """What the decoder's class in segmentation-models-pytorch asks of an encoder.

    Other encoders reach the decoder through zoo's adapter. `input_multiple` (pixels) is for
    encoders that do not take every size as built: the size they are made for must be a multiple of
    it.
    """

    where: Where = Field(default_factory=dict)
    channels_divisible: Divisible | None = None
    input_multiple: Annotated[int, Field(ge=1)] | None = None

    def lacking(self, encoder: Encoder) -> str | None:
        """What the encoder lacks, or None where it fits."""
        for column, patterns in self.where.items():
            value = getattr(encoder, column)
            if not fits(patterns, value):
                wanted = " or ".join(pattern or "none" for pattern in patterns)
                return f"{column} {wanted}, has {value or 'none'}"
        if (rule := self.channels_divisible) is not None:
            channels = encoder.channels_at(rule.stride)
            if channels is None or channels % rule.by:
                return f"a multiple of {rule.by} channels at stride {rule.stride}, has {channels}"
        if self.input_multiple is not None and encoder.resizes != "any":
            sides = [int(side) for side in encoder.input_size.split("/")[1:]]
            if any(side % self.input_multiple for side in sides):
                return f"input sides of a multiple of {self.input_multiple}, has {sides}"
        return None


class Case(Strict):
    """Arguments of the decoder's class, and of timm, for the encoders that match `where`."""

    where: Where
    args: dict[str, Any] = Field(default_factory=dict)
    encoder_args: dict[str, Any] = Field(default_factory=dict)


class DecoderChanges(Strict):
    """What a registry file may say of a decoder, in the place of these fields of its row.

    `args` go to its class, `encoder_args` to timm. The arguments of the first of `cases` that
    matches the encoder come on top of `args`. `needs` is what SMP's class asks of an encoder.
    `takes` are the only encoders that a custom head can be built on, except those that match
    `leaves_out`. `recipe` takes precedence over the encoder rules' recipe.
    """

    title: Annotated[str, Field(min_length=1)]
    paper: Annotated[
        str, written_as(r"\d{4}\.\d{4,5}|doi:10\.\d+/\S+", "an arXiv id or doi:10.NUMBER/NAME")
    ]
    args: dict[str, Any] = Field(default_factory=dict)
    encoder_args: dict[str, Any] = Field(default_factory=dict)
    cases: list[Case] = Field(default_factory=list)
    needs: Needs | None = None
    takes: Where = Field(default_factory=dict)
    leaves_out: Where = Field(default_factory=dict)
    recipe: str | None = None


class Decoder(DecoderChanges):
    """A row of the decoder table.

    `smp` is the name of SMP's class, None for a custom head, whose `options` are a schema.
    `strides` are those of the maps that it takes, from fine to coarse, the deepest last; 0 is a
    place in SMP's list of maps that the decoder ignores; none at all means the deepest level only.
    With `optional` the map of that stride may be empty, with `auxiliary` the level before the
    encoder's last is wanted too, for an auxiliary head. `output_stride` is the stride of the
    deepest map that a custom head wants of a dilated encoder. The channels of maps must be
    multiples of `divisor`, height and width of SMP's input of `size_multiple` pixels, and at least
    `size_minimum` pixels, those of the deepest map at least `deepest_minimum`. `why` is the reason
    for `takes` and `leaves_out`.
    """

    smp: str | None = None
    options: type[Strict] = Strict
    strides: tuple[int, ...] = (0, 4, 8, 16, 32)
    optional: int | None = None
    auxiliary: bool = False
    output_stride: int | None = None
    divisor: int = 1
    size_multiple: int = 32
    size_minimum: int = 32
    deepest_minimum: int = 1
    why: str = ""

    def refuses(self, encoder: Encoder) -> str | None:
        """What an encoder that it cannot be built on lacks, or None where it can."""
        if self.leaves_out and matches(self.leaves_out, encoder):
            left_out = "; ".join(f"{key} {', '.join(p)}" for key, p in self.leaves_out.items())
            return f"an encoder that is not left out ({left_out}), has {encoder.name}"
        return Needs(where=self.takes).lacking(encoder) if self.takes else None


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"should be odd, got {value}")
    return value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
UpTo64 = Annotated[int, Field(ge=1, le=64)]
Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]
Several = (BeforeValidator(_as_tuple), Field(min_length=1, max_length=16))


class FcnOptions(Strict):
    """Options of `fcn`."""

    stride: Literal[8, 16, 32] = 8
    dropout: Fraction = 0.5


class PspnetOptions(Strict):
    """Options of `pspnet`; docs/decoders.md says what they do."""

    bins: Annotated[tuple[UpTo64, ...], *Several] = (1, 2, 3, 6)
    pooling: Literal["average", "max"] = "average"
    channels: Count = 512
    kernels: Annotated[tuple[Kernel, ...], *Several] = (3,)
    rates: Annotated[tuple[UpTo64, ...], *Several] = (1,)
    separable: bool = False
    norm: Literal["batch", "group", "layer"] = "batch"
    dropout: Fraction = 0.1
    upsampling: Literal["bilinear", "nearest", "transposed", "shuffle"] = "bilinear"
    auxiliary: Annotated[float, Field(ge=0, le=10)] | None = None

    @model_validator(mode="after")
    def _channels_are_shared_equally(self) -> Self:
        count = len(self.kernels) * len(self.rates)
        if self.channels % count:
            raise ValueError(
                f"channels: {self.channels} cannot be shared by {count} convolutions equally; "
                f"take {self.channels // count * count or count}"
            )
        return self


class EomtOptions(Strict):
    """Options of `eomt`: its queries, and how many of the encoder's last blocks they go through.

    `blocks` of None is 3, and 4 in encoders of more than 12 blocks.
    """

    queries: Annotated[int, Field(ge=1, le=4096)] = 100
    blocks: Annotated[int, Field(ge=1, le=256)] | None = None


class PmtOptions(Strict):
    """Options of `pmt`: its queries, its own blocks, and how many of the encoder's blocks it reads.

    `mlp_ratio` is the width of the MLPs in its blocks relative to the encoder's width.
    """

    queries: Annotated[int, Field(ge=1, le=4096)] = 100
    blocks: Annotated[int, Field(ge=1, le=64)] = 4
    levels: Annotated[int, Field(ge=1, le=256)] = 4
    mlp_ratio: Annotated[float, Field(ge=0.25, le=8)] = 1.0


FROM_TWO = (2, 4, 8, 16, 32)
PYRAMID = ["2/4/8/16/32", "4/8/16/32", "1/2/4/8/16/32"]
"""Strides of an encoder's maps that SMP's classes accept."""

DECODERS: dict[str, Decoder] = {
    "unet": Decoder(
        title="U-Net",
        paper="1505.04597",
        smp="Unet",
        strides=FROM_TWO,
        optional=2,
        needs=Needs(where={"reductions": PYRAMID}),
    ),
    "unetplusplus": Decoder(
        title="UNet++",
        paper="1807.10165",
        smp="UnetPlusPlus",
        strides=FROM_TWO,
        optional=2,
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": [""]}),
    ),
    "manet": Decoder(
        title="MA-Net",
        paper="doi:10.1109/ACCESS.2020.3025372",
        smp="MAnet",
        strides=FROM_TWO,
        optional=2,
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": [""]}),
    ),
    "linknet": Decoder(
        title="LinkNet",
        paper="1707.03718",
        smp="Linknet",
        strides=FROM_TWO,
        optional=2,
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": [""]}),
    ),
    "fpn": Decoder(
        title="Panoptic FPN, semantic branch",
        paper="1901.02446",
        smp="FPN",
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": ["", "2"]}),
    ),
    "pspnet": Decoder(
        title="PSPNet",
        paper="1612.01105",
        options=PspnetOptions,
        strides=(8,),
        auxiliary=True,
        output_stride=8,
    ),
    "pspnet_lite": Decoder(
        title="PSPNet head on half an encoder",
        paper="1612.01105",
        smp="PSPNet",
        strides=(0, 0, 8),
        divisor=4,
        needs=Needs(
            where={
                "reductions": ["2/4/8*", "4/8*", "1/2/4/8*"],
                "inexact_sizes": ["", "2", "2/4"],
            },
            channels_divisible=Divisible(stride=8, by=4),
        ),
    ),
    "pan": Decoder(
        title="Pyramid Attention Network",
        paper="1805.10180",
        smp="PAN",
        strides=(0, 4, 8, 16, 16),
        deepest_minimum=8,
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": [""], "dilates": ["*16"]}),
    ),
    "deeplabv3": Decoder(
        title="DeepLabV3",
        paper="1706.05587",
        smp="DeepLabV3",
        strides=(0, 0, 0, 0, 8),
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": [""], "dilates": ["8*"]}),
    ),
    "deeplabv3plus": Decoder(
        title="DeepLabV3+",
        paper="1802.02611",
        smp="DeepLabV3Plus",
        strides=(0, 4, 0, 0, 16),
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": [""], "dilates": ["*16"]}),
    ),
    "upernet": Decoder(
        title="UPerNet",
        paper="1807.10221",
        smp="UPerNet",
        needs=Needs(where={"reductions": PYRAMID, "inexact_sizes": ["", "2"]}),
    ),
    "segformer": Decoder(
        title="SegFormer head",
        paper="2105.15203",
        smp="Segformer",
        needs=Needs(where={"reductions": PYRAMID}),
    ),
    "dpt": Decoder(
        title="Dense Prediction Transformer",
        paper="2103.13413",
        smp="DPT",
        strides=(4, 8, 16, 32),
        encoder_args={"num_classes": 0},
        cases=[Case(where={"prefix_tokens": ["0"]}, args={"decoder_readout": "ignore"})],
        needs=Needs(
            where={
                "reductions": ["8/8*", "16/16*", "32/32*"],
                "inexact_sizes": [""],
                "blocks": ["[4-9]", "[1-9]?"],
            },
            input_multiple=32,
        ),
    ),
    "linear": Decoder(title="One linear layer", paper="2304.07193", strides=()),
    "fcn": Decoder(title="FCN-8s", paper="1411.4038", options=FcnOptions, strides=(8, 16, 32)),
    "eomt": Decoder(
        title="Encoder-only mask transformer",
        paper="2503.19108",
        options=EomtOptions,
        strides=(),
        recipe="eomt",
        takes={"module": ["vision_transformer", "deit", "eva"]},
        leaves_out={"name": ["*_18x2_*", "*_xp_*", "*pwee_*"]},
        why="queries only pass through plain transformers whose blocks have no parallel parts",
    ),
    "pmt": Decoder(
        title="Plain mask transformer",
        paper="2603.25398",
        options=PmtOptions,
        strides=(),
        recipe="pmt",
        takes={"module": ["vision_transformer", "deit", "eva"]},
        why="tokens of several blocks only add up in plain transformers",
    ),
}

OUTPUT_STRIDES = (8, 16, 32)
"""What `encoder_output_stride` may be; some of SMP's classes take only two of these."""

ADAPTED = frozenset({"encoder_depth", "encoder_output_indices"})
"""Options of SMP's classes that the adapter decides by itself."""

NORMS = (True, False, "batchnorm", "groupnorm", "layernorm", "identity")
"""What `decoder_use_norm` may be; SMP's own layernorm and instancenorm fail."""

CHOICES: dict[str, tuple[str | None, ...]] = {
    "decoder_attention_type": (None, "scse"),
    "decoder_interpolation": ("nearest", "nearest-exact", "bilinear", "bicubic", "area"),
    "decoder_merge_policy": ("add", "cat"),
    "decoder_readout": ("ignore", "add", "cat"),
}
"""What SMP's options that are words may be; SMP itself says so of some only in the first pass."""

NO_OPTIONS = frozenset(
    {"self", "encoder_name", "encoder_weights", "in_channels", "classes", "activation",
     "aux_params"}
)  # fmt: skip
"""Arguments of SMP's constructors that are no options of a decoder; models return logits."""

LEAST_WITHOUT_PADDING = 128
"""Encoders that lose rows and columns at the borders have nothing left of a smaller image."""


def defaults(decoder: str, *, adapted: bool = False) -> dict[str, Any]:
    """The options of a decoder with their defaults; without those that an adapter decides.

    Those of SMP's classes are read from the signatures in SMP's source, which is not imported.
    """
    row = DECODERS.get(decoder)
    if row is None:
        return {}
    if row.smp is None:
        return {name: field.default for name, field in row.options.model_fields.items()}
    known = smp_defaults(row.smp)
    return {name: value for name, value in known.items() if not (adapted and name in ADAPTED)}


@functools.cache
def smp_defaults(cls: str) -> dict[str, Any]:
    """The options of SMP's class `cls` with their defaults, in the order of its constructor."""
    found = find_spec("segmentation_models_pytorch")
    if found is None or found.origin is None:
        raise RunError("segmentation-models-pytorch is missing. Install segmentation-zoo again.")
    constructor = _constructor(Path(found.origin), cls)
    if constructor is None:
        raise RunError(f"The installed segmentation-models-pytorch has no class {cls}.")
    arguments = constructor.args
    named = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    pairs = [
        *zip(named, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {
        argument.arg: ast.literal_eval(default)
        for argument, default in pairs
        if default is not None and argument.arg not in NO_OPTIONS
    }


def _constructor(file: Path, cls: str) -> ast.FunctionDef | None:
    """`__init__` of the class that `file` defines, or imports by a relative import."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == cls:
            functions = (part for part in node.body if isinstance(part, ast.FunctionDef))
            return next((part for part in functions if part.name == "__init__"), None)
        if not isinstance(node, ast.ImportFrom) or node.level != 1 or node.module is None:
            continue
        if cls in [alias.name for alias in node.names]:
            place = file.parent.joinpath(*node.module.split("."))
            module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            return _constructor(module, cls)
    return None


def allowed_options(decoder: str) -> frozenset[str]:
    """The options that a file which somebody else wrote may set."""
    return frozenset(defaults(decoder))


def filled_options(decoder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a custom head: those `given`, which are valid, and the defaults of others."""
    return dict(DECODERS[decoder].options.model_validate(dict(given)))


def output_stride(decoder: str, given: Mapping[str, Any]) -> int | None:
    """The output stride that a decoder asks of its encoder; None where it takes the net as it is.

    `given` are options that differ from the defaults.
    """
    row = DECODERS[decoder]
    default = row.output_stride
    if row.smp is not None:
        default = defaults(decoder).get("encoder_output_stride")
    stride = given.get("encoder_output_stride", default)
    return stride if stride in OUTPUT_STRIDES else None


def check_options(
    decoder: str, given: Mapping[str, Any], *, adapted: bool = False, beside: Collection[str] = ()
) -> None:
    """Raise InputError with everything that is wrong with a decoder's options.

    `beside` are names that are taken too. The kinds of values of SMP's options follow from their
    defaults; what they mean for each other is left to SMP.
    """
    row, known = DECODERS[decoder], defaults(decoder, adapted=adapted)
    wrong = []
    for name in given:
        if name == "activation" and name not in known:
            wrong.append(
                "activation is not an option: a model returns logits. Apply softmax(dim=1) or "
                "sigmoid() to them; for the loss, set the recipe's activation."
            )
        elif name == "aux_params" and name not in known:
            wrong.append(
                "aux_params is not an option: a model returns one tensor, the logits of every "
                "pixel, and no label of the image beside them. Leave it out."
            )
        elif name not in known and name not in beside:
            close = nearest(name, known)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            has = ", ".join(sorted(known)) or "none"
            wrong.append(f"{decoder} has no option {name}.{hint} It has {has}.")
    if row.smp is None:
        try:
            row.options.model_validate({name: given[name] for name in given if name in known})
        except ValidationError as error:
            wrong += [
                f"{dotted(place)}: {text}" if place else text
                for place, text in problems(error, row.options)
            ]
    else:
        for name, value in given.items():
            if name in known and (problem := _wrong_for_smp(name, value, known[name])):
                wrong.append(f"{name}: should be {problem}, got {brief(value)}")
        depth = given.get("encoder_depth", defaults(decoder).get("encoder_depth"))
        wrong += [] if wrong else _wrong_lengths(known, given, depth)
    if (norm := given.get("decoder_use_norm", True)) not in NORMS and "decoder_use_norm" in known:
        allowed = ", ".join(map(str, NORMS))
        wrong.append(f"decoder_use_norm: should be one of {allowed}, got {norm!r}")
    if (stride := given.get("encoder_output_stride", 8)) not in OUTPUT_STRIDES:
        wrong.append(f"encoder_output_stride: should be 8, 16 or 32, got {stride!r}")
    if wrong:
        raise InputError(join_problems(f"These options of {decoder} cannot be used:", wrong))


def _wrong_for_smp(name: str, value: object, default: object) -> str | None:
    """What the option `name` of one of SMP's classes should be, where `value` is something else."""
    if name in ("decoder_use_norm", "encoder_output_stride"):
        return None  # `check_options` has words for these
    if name in CHOICES:
        found = any(value == choice for choice in CHOICES[name])
        return None if found else f"one of {', '.join(map(str, CHOICES[name]))}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and 0 <= value < 1 else "a fraction from 0 to below 1"  # type: ignore[operator]
    least = 0 if name == "encoder_output_indices" else 1

    def whole(number: object) -> bool:
        return type(number) is int and least <= number <= MAX_NUMBER

    if isinstance(default, tuple) or name == "encoder_output_indices":
        listed = isinstance(value, list | tuple) and len(value) > 0 and all(map(whole, value))
        right = listed or (value is None and default is None)
        return None if right else f"a list of whole numbers from {least} to {MAX_NUMBER}"
    right = whole(value) or (value is None and default is None)
    return None if right else f"a whole number from {least} to {MAX_NUMBER}"


def _wrong_lengths(known: Mapping[str, Any], given: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Lists of SMP's options, of the right kind, that have too few or too many entries."""
    for name, default in known.items():
        if not isinstance(default, tuple) or name == "encoder_output_indices":
            continue
        rates = name == "decoder_atrous_rates"
        count = 3 if rates else depth
        if name not in given and name == "decoder_channels" and len(default) != count:
            yield (
                f"{name}: give {count} of them, one for each level of encoder_depth, for example "
                f"{list(default[:count])}"
            )
        elif name in given and len(given[name]) != count:
            beside = "" if rates else ", as many as encoder_depth"
            yield f"{name}: should be {count} numbers{beside}, got {brief(given[name])}"


def input_multiple(decoder: str, encoder: Encoder | None, in_smp: bool) -> int:
    """The multiple of pixels that images are padded to before they enter the net.

    For SMP's classes (`in_smp`) the decoder's own; for the rest the largest stride of the encoder,
    since its maps are resized to what the decoder takes.
    """
    if in_smp or encoder is None:
        return DECODERS[decoder].size_multiple
    return max(int(stride) for stride in encoder.reductions.split("/"))


def input_minimum(decoder: str, encoder: Encoder | None, given: Mapping[str, Any]) -> int:
    """The least height and width, in pixels, that images are padded to.

    `given` are options that differ from the defaults.
    """
    row, stride = DECODERS[decoder], output_stride(decoder, given) or 1
    minimum = max(row.size_minimum, row.deepest_minimum * stride)
    return max(minimum, LEAST_WITHOUT_PADDING) if encoder and encoder.inexact_sizes else minimum
