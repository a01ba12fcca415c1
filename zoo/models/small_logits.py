"""The logits of a network before the bilinear enlargement that its head ends in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from zoo.models.network import Network
from zoo.models.outputs import Auxiliary, Outputs, resized


def net_outputs(net: nn.Module, images: torch.Tensor) -> Outputs | torch.Tensor:
    """What the losses take from `net`, of `images` as the network takes them.

    `Outputs` hold its logits as they are before the last enlargement; `full_size` of them is what
    `net(images)` gives. Networks that end otherwise give their plain logits.
    """
    size = (images.shape[-2], images.shape[-1])
    is_own = isinstance(net, Network)
    sides: tuple[Auxiliary, ...] = ()
    with _left_small(net) as factor:
        if isinstance(net, Network):
            features = net.encoder(images)
            logits, sides = net.scores(features), net.side_scores(features)
        else:
            logits = net(images)
    if factor is None:
        return Outputs(logits, size, size, sides, align_corners=False) if is_own else logits
    enlarged = (int(logits.shape[-2] * factor), int(logits.shape[-1] * factor))
    if not is_own or enlarged == size:
        return Outputs(logits, enlarged, enlarged, align_corners=True)
    return resized(resized(logits, enlarged, align_corners=True), size, align_corners=False)


def stacked_scores(net: Network, images: torch.Tensor) -> torch.Tensor:
    """The logits of a network and of its auxiliary head at the images' size, channel on channel."""
    size = (images.shape[-2], images.shape[-1])
    features = net.encoder(images)
    sides = [resized(side.logits, size, False) for side in net.side_scores(features)]
    return torch.cat([net.decode(features, size), *sides], dim=1)


@contextlib.contextmanager
def _left_small(net: nn.Module) -> Iterator[float | None]:
    """Meanwhile a head of segmentation-models-pytorch does not enlarge its logits.

    Yields the factor that it enlarges by at other times, or None where there is no such head. The
    network itself runs, so that all hooks on its modules act.
    """
    found = _enlargement(net)
    if found is None:
        yield None
        return
    layer, name = found
    factor = getattr(layer, name)
    setattr(layer, name, 1.0)
    try:
        yield float(factor)
    finally:
        setattr(layer, name, factor)


def _enlargement(net: nn.Module) -> tuple[Any, str] | None:
    """The module that enlarges the logits at the end, and the name of its factor."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTSegmentationHead

    head = getattr(net, "segmentation_head", None)
    if isinstance(head, SegmentationHead):
        _, layer, activation = head
        name = "scale_factor"
        if not isinstance(layer, nn.Upsample):
            return None
    elif isinstance(head, DPTSegmentationHead):
        layer, name, activation = head, "upsampling_factor", head.activation
    else:
        return None
    linear = isinstance(activation.activation, nn.Identity)
    one_output = getattr(net, "classification_head", None) is None
    return (layer, name) if linear and one_output else None
