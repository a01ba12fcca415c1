"""What a decoder can be told: its options, their defaults and what they allow. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from zoo.common.errors import InputError, join_problems, nearest
from zoo.common.schema import Strict, dotted, problems

MOST = 16
"""Entries of a list, at most."""


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"should be odd, got {value}")
    return value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=1, le=65_536)]
Share = Annotated[float, Field(ge=0, lt=1)]
Bin = Annotated[int, Field(ge=1, le=64)]
Rate = Annotated[int, Field(ge=1, le=64)]
Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]
Several = (BeforeValidator(_as_tuple), Field(min_length=1, max_length=MOST))


class LinearOptions(Strict):
    """`linear` has none."""


class FcnOptions(Strict):
    """Options of `fcn`."""

    stride: Literal[8, 16, 32] = 8
    dropout: Share = 0.5


class PspnetOptions(Strict):
    """Options of `pspnet`; docs/decoders.md says what they do."""

    bins: Annotated[tuple[Bin, ...], *Several] = (1, 2, 3, 6)
    pooling: Literal["average", "max"] = "average"
    channels: Count = 512
    kernels: Annotated[tuple[Kernel, ...], *Several] = (3,)
    rates: Annotated[tuple[Rate, ...], *Several] = (1,)
    separable: bool = False
    norm: Literal["batch", "group", "layer"] = "batch"
    dropout: Share = 0.1
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


OWN: dict[str, type[Strict]] = {
    "linear": LinearOptions,
    "fcn": FcnOptions,
    "pspnet": PspnetOptions,
    "eomt": EomtOptions,
}
"""The heads of zoo's own and their options."""

_U_SHAPED = {
    "encoder_depth": 5,
    "decoder_use_norm": "batchnorm",
    "decoder_channels": (256, 128, 64, 32, 16),
    "decoder_interpolation": "nearest",
    "activation": None,
}
_DEEPLAB = {
    "encoder_depth": 5,
    "decoder_channels": 256,
    "decoder_atrous_rates": (12, 24, 36),
    "decoder_aspp_dropout": 0.5,
    "activation": None,
}
SMP: dict[str, dict[str, Any]] = {
    "unet": {**_U_SHAPED, "decoder_attention_type": None},
    "unetplusplus": {**_U_SHAPED, "decoder_attention_type": None},
    "manet": {**_U_SHAPED, "decoder_pab_channels": 64},
    "linknet": {"encoder_depth": 5, "decoder_use_norm": "batchnorm", "activation": None},
    "fpn": {
        "encoder_depth": 5,
        "decoder_pyramid_channels": 256,
        "decoder_segmentation_channels": 128,
        "decoder_merge_policy": "add",
        "decoder_dropout": 0.2,
        "decoder_interpolation": "nearest",
        "upsampling": 4,
        "activation": None,
    },
    "pspnet_lite": {
        "encoder_depth": 3,
        "psp_out_channels": 512,
        "decoder_use_norm": "batchnorm",
        "psp_dropout": 0.2,
        "upsampling": 8,
        "activation": None,
    },
    "pan": {
        "encoder_depth": 5,
        "encoder_output_stride": 16,
        "decoder_channels": 32,
        "decoder_interpolation": "bilinear",
        "upsampling": 4,
        "activation": None,
    },
    "deeplabv3": {
        **_DEEPLAB,
        "encoder_output_stride": 8,
        "decoder_aspp_separable": False,
        "upsampling": None,
    },
    "deeplabv3plus": {
        **_DEEPLAB,
        "encoder_output_stride": 16,
        "decoder_aspp_separable": True,
        "upsampling": 4,
    },
    "upernet": {
        "encoder_depth": 5,
        "decoder_channels": 256,
        "decoder_use_norm": "batchnorm",
        "upsampling": 4,
        "activation": None,
    },
    "segformer": {
        "encoder_depth": 5,
        "decoder_segmentation_channels": 256,
        "upsampling": 4,
        "activation": None,
    },
    "dpt": {
        "encoder_depth": 4,
        "encoder_output_indices": None,
        "decoder_readout": "cat",
        "decoder_intermediate_channels": (256, 512, 1024, 1024),
        "decoder_fusion_channels": 256,
        "activation": None,
    },
}
"""The options of SMP's classes with their defaults, as in their constructors."""

STRIDES = (8, 16, 32)
"""What `encoder_output_stride` may be; some of SMP's classes take two of these alone."""

OUTPUT_STRIDES = {"pspnet": 8}
"""The stride of the deepest map that a head of zoo's own wants of a dilated encoder."""

SETTLED = frozenset({"encoder_depth", "encoder_output_indices"})
"""Options of SMP's classes that are settled where an encoder comes through the adapter."""


NORMS = (True, False, "batchnorm", "groupnorm", "layernorm", "identity")
"""What `decoder_use_norm` may be; SMP's own layernorm and instancenorm fail."""


def defaults(decoder: str, *, adapted: bool = False) -> dict[str, Any]:
    """The options of a decoder with their defaults; without those that an adapter settles."""
    if decoder in OWN:
        return {name: field.default for name, field in OWN[decoder].model_fields.items()}
    known = SMP.get(decoder, {})
    return {name: value for name, value in known.items() if not (adapted and name in SETTLED)}


def output_stride(decoder: str, given: Mapping[str, Any]) -> int | None:
    """The output stride that a decoder asks of its encoder; None where it takes the net as it is.

    `given` are options that differ from the defaults.
    """
    known = SMP.get(decoder, {}).get("encoder_output_stride", OUTPUT_STRIDES.get(decoder))
    stride = given.get("encoder_output_stride", known)
    return stride if stride in STRIDES else None


def check_options(
    decoder: str, given: Mapping[str, Any], *, adapted: bool = False, beside: Collection[str] = ()
) -> None:
    """Raise InputError with everything that is wrong with a decoder's options.

    `beside` are names that are taken too. The values of options of SMP's classes are left to them.
    """
    known = defaults(decoder, adapted=adapted)
    wrong = [_unknown(decoder, n, known) for n in given if n not in known and n not in beside]
    if decoder in OWN:
        model = OWN[decoder]
        try:
            model.model_validate({name: given[name] for name in given if name in known})
        except ValidationError as error:
            wrong += [
                f"{dotted(place)}: {text}" if place else text
                for place, text in problems(error, model)
            ]
    if (norm := given.get("decoder_use_norm", True)) not in NORMS and "decoder_use_norm" in known:
        allowed = ", ".join(map(str, NORMS))
        wrong.append(f"decoder_use_norm: should be one of {allowed}, got {norm!r}")
    if (stride := given.get("encoder_output_stride", STRIDES[0])) not in STRIDES:
        wrong.append(f"encoder_output_stride: should be 8, 16 or 32, got {stride!r}")
    if wrong:
        raise InputError(join_problems(f"These options of {decoder} cannot be used:", wrong))


def _unknown(decoder: str, name: str, known: Mapping[str, Any]) -> str:
    close = nearest(name, known)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{decoder} has no option {name}.{hint} It has {', '.join(sorted(known)) or 'none'}."
