"""One ordered partition of an encoder's layers, used for freezing and for layer-wise rates."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zoo.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from zoo.models.segmentation import SegmentationModel


def encoder_layers(model: SegmentationModel) -> list[list[str]]:
    """Names of the encoder's parameters (as in `model.named_parameters()`), layer by layer.

    The first list is the stem, the last one the layer nearest to the decoder; together they hold
    every parameter of the encoder exactly once. The order is timm's own (`group_matcher`), asked of
    the whole network on the meta device, since feature extractors do not keep it; where timm
    numbers nothing, the order of the top-level modules is taken.
    """
    prefix = "net.encoder.model."
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    depth = _depths(model.spec.encoder)
    keys = [_plain(name.removeprefix(prefix)) for name in names]
    if any(key not in depth for key in keys):
        depth = _top_level_depths(keys)
    layers: dict[int, list[str]] = {}
    for name, key in zip(names, keys, strict=True):
        layers.setdefault(depth[key], []).append(name)
    return [layers[index] for index in sorted(layers)]


def unfreeze(model: SegmentationModel, share: float) -> None:
    """Let the top `share` (in [0, 1]) of the encoder's layers learn and freeze the rest.

    Every parameter is set, so the call can be repeated with any share. The decoder always learns.
    Call `train_mode` afterwards: it is what keeps the frozen layers' statistics still.
    """
    if not 0 <= share <= 1:
        raise InputError(f"unfreeze is a share of the encoder's layers in [0, 1], not {share}.")
    layers = encoder_layers(model)
    first = len(layers) - learning_layers(len(layers), share)
    frozen = {name for layer in layers[:first] for name in layer}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def learning_layers(count: int, share: float) -> int:
    """How many of `count` layers learn: the share rounded, and at least one unless it is 0."""
    return 0 if share == 0 else max(1, round(count * share))


def train_mode(model: nn.Module) -> None:
    """Training mode for what learns, evaluation mode for what is frozen.

    A module whose parameters are all frozen goes to evaluation mode with everything inside it: its
    BatchNorm statistics stay still, its dropout and stochastic depth are off. A module without
    parameters that stands alone follows the next module that has some (a ViT's dropout on the
    position embedding follows the first block), the last ones follow the module before them.
    """
    model.train()
    following: bool | None = None
    waiting: list[nn.Module] = []
    for module in _outermost(model):
        parameters = list(module.parameters())
        if not parameters:
            waiting.append(module)
            continue
        following = not any(parameter.requires_grad for parameter in parameters)
        for other in [*waiting, module]:
            other.train(not following)
        waiting.clear()
    for module in waiting:
        module.train(not following)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules that are frozen as a whole, learn as a whole, or hold no parameter."""
    for child in module.children():
        states = {parameter.requires_grad for parameter in child.parameters()}
        if len(states) == 2:
            yield from _outermost(child)
        else:
            yield child


def _plain(name: str) -> str:
    """Feature extractors rename `stages.0` to `stages_0` and may wrap the net once more."""
    return name.removeprefix("model.").replace(".", "_")


@functools.lru_cache(maxsize=16)
def _depths(encoder: str) -> dict[str, int]:
    """Layer number of every parameter of the whole timm network, 0 at the stem."""
    import timm
    import torch
    from timm.models import group_parameters

    with torch.device("meta"):
        net = timm.create_model(encoder)
    if not hasattr(net, "group_matcher"):
        return {}
    numbered = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    return {_plain(name): int(index) for name, index in numbered.items()}


def _top_level_depths(keys: list[str]) -> dict[str, int]:
    order: dict[str, int] = {}
    return {key: order.setdefault(key.split("_")[0], len(order)) for key in keys}
