"""Decoders on encoders that segmentation-models-pytorch cannot join, and heads of our own."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import timm
from torch import Tensor, nn

from zoo.models.decoders import DECODERS, Decoder, smp_class
from zoo.models.dilation import Dilation, plan_dilation
from zoo.models.encoder import Level, TimmEncoder, at_most, encoder_levels
from zoo.models.heads.eomt import EomtNetwork, eomt
from zoo.models.heads.fcn import fcn
from zoo.models.heads.linear import linear
from zoo.models.heads.pspnet import pspnet
from zoo.models.network import Network, Parts
from zoo.models.pyramid import Pyramid, Source, canvas, plan
from zoo.models.smp_parts import replace_head
from zoo.models.unused import keep_as_buffers, unused_parameters
from zoo.registry.decoders import check_options

if TYPE_CHECKING:
    from zoo.models.spec import ModelSpec

TRACED = 256
"""The side in pixels, rounded up to the encoder's stride, at which unused parameters are found."""

Head = Callable[..., Parts]

HEADS: dict[str, Head] = {"linear": linear, "fcn": fcn, "pspnet": pspnet}
"""What stands behind the encoder, from an encoder's levels, the number of classes and options."""

NETWORKS = {"eomt": eomt}
"""Decoders that reach into the encoder: the whole network from a description and options."""


def build_network(spec: ModelSpec, **pretrained: Any) -> Network | EomtNetwork:
    """The network of `spec` with our own encoder; `pretrained` are arguments of timm's builder.

    Raises InputError for options that the decoder does not have.
    """
    row = DECODERS[spec.decoder]
    check_options(spec.decoder, spec.decoder_args, adapted=True)
    if spec.decoder in NETWORKS:
        return NETWORKS[spec.decoder](spec, pretrained, **spec.decoder_args)
    levels, plain = encoder_levels(spec.encoder, **spec.encoder_args)
    levels = at_most(levels, spec.dilated)
    strides = _strides(row, spec.decoder_args)
    used = _used(levels, row, strides, spec.decoder_args)
    make = functools.partial(
        TimmEncoder,
        spec.encoder,
        [levels[position].number for position in used],
        in_chans=spec.in_chans,
        norm=plain,
        dilation=_dilation(spec),
        **spec.encoder_args,
    )
    encoder = make(**pretrained)
    side = spec.img_size or -(-TRACED // levels[-1].stride) * levels[-1].stride
    keep_as_buffers(encoder, unused_parameters(make, spec.in_chans, side))
    if row.smp_class is None:
        parts = HEADS[spec.decoder](encoder.levels, len(spec.classes), **spec.decoder_args)
    else:
        parts = _smp_parts(spec, encoder.levels, strides)
    return Network(encoder, parts, len(spec.classes))


class SmpDecoder(nn.Module):
    """A decoder of SMP behind a pyramid that makes the maps it takes.

    `places` are the strides in SMP's list of maps, 0 where the decoder does not look.
    """

    def __init__(self, pyramid: Pyramid, decoder: nn.Module, places: Sequence[int]):
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder
        self.places = tuple(places)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The decoder's map for the images and an encoder's maps."""
        images, made = features[0], iter(self.pyramid(features))
        batch, (height, width) = images.shape[0], canvas(images, self.pyramid.multiple)
        empty = images.new_empty((batch, 0, height, width))
        halved = images.new_empty((batch, 0, height // 2, width // 2))
        maps = [empty, *(next(made) if stride else halved for stride in self.places)]
        decoded: Tensor = self.decoder(maps)
        return decoded


class DptDecoder(nn.Module):
    """SMP's decoder of DPT, which knows prefix tokens, behind a pyramid; it gets none."""

    def __init__(self, pyramid: Pyramid, decoder: nn.Module):
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder

    def forward(self, features: list[Tensor]) -> Tensor:
        """The decoder's map for the images and an encoder's maps."""
        maps = self.pyramid(features)
        decoded: Tensor = self.decoder(maps, [None] * len(maps))
        return decoded


@dataclass(frozen=True)
class _Stated:
    """What SMP's classes ask an encoder while they are built."""

    out_channels: list[int]
    output_stride: int
    output_strides: list[int]
    has_prefix_tokens: bool = False


def _dilation(spec: ModelSpec) -> Dilation | None:
    if spec.dilated is None:
        return None
    whole = functools.partial(
        timm.create_model, spec.encoder, features_only=True, **spec.encoder_args
    )
    return plan_dilation(whole, spec.dilated)


def _smp_parts(spec: ModelSpec, levels: list[Level], strides: tuple[int, ...]) -> Parts:
    """Decoder and segmentation head as SMP's class builds them for the pyramid's maps."""
    from zoo.models.build import smp_options

    row, cls = DECODERS[spec.decoder], smp_class(spec.decoder)
    pyramid = Pyramid(levels, _plan(levels, row, strides), row.divisor)
    is_dpt = row.smp_class == "DPT"
    channels = iter(pyramid.channels)
    listed = [next(channels) if stride else 0 for stride in strides]
    stated = _Stated(
        out_channels=listed if is_dpt else [spec.in_chans, *listed],
        output_stride=max(strides),
        output_strides=list(strides),
    )
    options = {**smp_options(spec), **({"decoder_readout": "ignore"} if is_dpt else {})}
    with _encoder_stated(cls, stated):
        net: Any = cls(
            encoder_name=f"tu-{spec.encoder}",
            encoder_weights=None,
            in_channels=spec.in_chans,
            classes=len(spec.classes),
            **options,
        )
    decoder = DptDecoder(pyramid, net.decoder) if is_dpt else None
    replace_head(net)
    return Parts(decoder or SmpDecoder(pyramid, net.decoder, strides), net.segmentation_head)


@contextlib.contextmanager
def _encoder_stated(cls: type[nn.Module], stated: _Stated) -> Iterator[None]:
    """While SMP's class is built it gets `stated` in the place of an encoder of its own."""
    module = sys.modules[cls.__module__]
    name = "get_encoder" if hasattr(module, "get_encoder") else "TimmViTEncoder"
    with mock.patch.object(module, name, return_value=stated):
        yield


def _strides(row: Decoder, options: dict[str, Any]) -> tuple[int, ...]:
    """The strides of the wanted maps, with the output stride that the options ask for."""
    if (asked := options.get("encoder_output_stride")) is not None:
        return tuple(min(stride, asked) for stride in (*row.strides[:-1], asked))
    if row.smp_class is None and "stride" in options:
        return tuple(stride for stride in row.strides if stride >= options["stride"])
    return row.strides


def _used(
    levels: Sequence[Level], row: Decoder, strides: tuple[int, ...], options: dict[str, Any]
) -> list[int]:
    """The positions of the levels that the decoder and its auxiliary head take."""
    used = {position for source in _plan(levels, row, strides) for position in source.levels}
    if row.auxiliary and options.get("auxiliary") != 0 and len(levels) > 1:
        used.add(len(levels) - 2)
    return sorted(used)


def _plan(levels: Sequence[Level], row: Decoder, strides: tuple[int, ...]) -> list[Source]:
    wanted = [stride for stride in strides if stride]
    if not wanted:
        return [Source(levels[-1].stride, (len(levels) - 1,))]
    return plan(levels, wanted, row.optional)
