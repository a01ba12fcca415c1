"""One ordered partition of an encoder's layers, used for freezing and for layer-wise rates."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from zoo.common.errors import InputError, join_problems, nearest, shortened
from zoo.models.norms import BATCH_NORMS

if TYPE_CHECKING:
    from torch import nn

    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Stage

ENCODER = "net.encoder.model."
"""What the names of timm's own parameters begin with in a `SegmentationModel`."""

NATIVE = "net.encoder."
"""The same for an encoder that is SMP's own (`smp:NAME`)."""

SIDE = 256
"""Pixels of the square that an encoder of SMP's own is run on to learn the order of its layers."""

NUMBERED = r"(?:[a-z]\w*\.)*?\d+\.(?:(?:[a-z]\w*\.)*?\d+\.)?"
"""The beginning of a parameter's name up to its second number, or to its only one."""


def encoder_layers(model: SegmentationModel) -> list[list[str]]:
    """Names of the encoder's parameters (as in `model.named_parameters()`), layer by layer.

    The first list is the stem, the last one the layer nearest to the decoder; together they hold
    every parameter of the encoder exactly once. The order is timm's own (`group_matcher`), asked of
    the whole network on the meta device, since feature extractors do not keep it; where timm
    numbers nothing, the numbers in the names say what a layer is. An encoder of SMP's own is
    numbered so too, in the order in which an image meets its parameters.
    """
    prefix = _prefix(model)
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    short = [name.removeprefix(prefix) for name in names]
    depth = _depths(model.spec.encoder)
    if any(_plain(name) not in depth for name in short):
        depth = _depths_by_number(short)
    layers: dict[int, list[str]] = {}
    for name, own in zip(names, short, strict=True):
        layers.setdefault(depth[_plain(own)], []).append(name)
    return [layers[index] for index in sorted(layers)]


def spared_from_decay(model: SegmentationModel) -> set[str]:
    """The encoder's parameters that timm's `no_weight_decay()` names, by their names in `model`."""
    spared = _spared(model.spec.encoder)
    prefix = _prefix(model)
    names = (name for name, _ in model.named_parameters() if name.startswith(prefix))
    return {name for name in names if _plain(name.removeprefix(prefix)) in spared}


def unfreeze(model: SegmentationModel, fraction: float) -> None:
    """Unfreeze the top `fraction` (in [0, 1]) of the encoder's layers and freeze the rest.

    Every parameter is set, so the call can be repeated with any fraction. The decoder always
    learns. Call `train_mode` afterwards: it is what keeps the frozen layers' statistics still.
    """
    _set(model, _decoder_names(model) | _top_names(model, fraction))


def set_learning(model: SegmentationModel, stage: Stage, epoch: int = 0) -> bool:
    """Let learn what `stage` says for its epoch `epoch` (from 0), freeze the rest.

    Returns whether that changed anything. Call `train_mode` afterwards, as for `unfreeze`. Raises
    InputError for a pattern that matches nothing.
    """
    return _set(model, learning_names(model, stage, epoch))


def learning_names(model: SegmentationModel, stage: Stage, epoch: int = 0) -> set[str]:
    """Names of the parameters that learn in epoch `epoch` (from 0) of `stage`.

    Raises InputError naming every pattern of `unfreeze_names` that matches nothing.
    """
    if stage.learn == "head":
        return _head_names(model)
    decoder = _decoder_names(model)
    if stage.learn == "decoder":
        return decoder
    if stage.unfreeze_names:
        return decoder | _matching(model, stage)
    return decoder | _top_names(model, stage_fraction(stage, epoch))


def stage_fraction(stage: Stage, epoch: int) -> float:
    """The fraction of the encoder's layers that learns in epoch `epoch` (from 0) of `stage`.

    With `unfreeze_from` it grows in equal steps from there in the first epoch to `unfreeze` in the
    last one.
    """
    if stage.unfreeze_from is None:
        return stage.unfreeze
    done = epoch / (stage.epochs - 1)
    return stage.unfreeze_from + (stage.unfreeze - stage.unfreeze_from) * done


def learning_layers(count: int, fraction: float) -> int:
    """How many of `count` layers learn: the fraction rounded, and at least one unless it is 0."""
    return 0 if fraction == 0 else max(1, round(count * fraction))


def train_mode(model: nn.Module, *, frozen_statistics: bool = False) -> None:
    """Training mode for what learns, evaluation mode for what is frozen.

    A module whose parameters are all frozen goes to evaluation mode with everything inside it: its
    BatchNorm statistics stay still, its dropout and stochastic depth are off. A module without
    parameters that stands alone follows the next module that has some (a ViT's dropout on the
    position embedding follows the first block), the last ones follow the module before them.
    With `frozen_statistics` every BatchNorm uses its running statistics and keeps them, whether
    its scale and shift learn or not.
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
    if frozen_statistics:
        _stop_statistics(model)


def _stop_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()


def _set(model: SegmentationModel, learning: set[str]) -> bool:
    """Set `requires_grad` of every parameter; returns whether one of them changed."""
    parameters = dict(model.named_parameters())
    before = {name for name, parameter in parameters.items() if parameter.requires_grad}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in learning)
    return before != learning


def _decoder_names(model: SegmentationModel) -> set[str]:
    """Everything that is not the encoder itself; what adapts it counts as decoder."""
    prefix = _prefix(model)
    return {name for name, _ in model.named_parameters() if not name.startswith(prefix)}


def _head_names(model: SegmentationModel) -> set[str]:
    """The parameters of the layers that score the classes."""
    found = {f"net.{name}" for name, _ in model.net.named_parameters()}
    head = {name for name in found if name.startswith("net.segmentation_head.")}
    if not head:
        raise InputError(
            f"{model.spec.name} has no layer of its own that scores the classes; "
            "use learn: decoder."
        )
    return head


def _top_names(model: SegmentationModel, fraction: float) -> set[str]:
    """The parameters of the encoder's top `fraction` of layers."""
    if not 0 <= fraction <= 1:
        raise InputError(f"unfreeze is a share of the encoder's layers in [0, 1], not {fraction}.")
    layers = encoder_layers(model)
    first = len(layers) - learning_layers(len(layers), fraction)
    return {name for layer in layers[first:] for name in layer}


def _matching(model: SegmentationModel, stage: Stage) -> set[str]:
    """The encoder's parameters that match a pattern by their own name or by a module's."""
    names = _timm_names(model)
    problems, found = [], set()
    for pattern in stage.unfreeze_names:
        matched = {n for n, name in names.items() if _matches(name, pattern)}
        if not matched:
            problems.append(_no_match(pattern, list(names.values())))
        found |= matched
    if problems:
        header = (
            f"stages.{stage.name}.unfreeze_names does not fit the encoder {model.spec.encoder}:"
        )
        raise InputError(join_problems(header, problems))
    return found


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(owner, pattern) for owner in _owners(name))


def _owners(name: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.weight` for `a.b.weight`."""
    return itertools.accumulate(name.split("."), "{}.{}".format)


def _no_match(pattern: str, names: list[str]) -> str:
    owners = list(dict.fromkeys(owner for name in names for owner in _owners(name)))
    close = nearest(pattern, owners)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    top = dict.fromkeys(name.split(".")[0] for name in names)
    return f"{pattern!r} matches nothing.{hint} Its modules: {shortened(top)}"


def _timm_names(model: SegmentationModel) -> dict[str, str]:
    """Each parameter of the encoder, by its name in `model`, with its name in timm's whole net."""
    own = _whole_names(model.spec.encoder)
    names = [name for layer in encoder_layers(model) for name in layer]
    prefix = _prefix(model)
    extracted = {name: name.removeprefix(prefix) for name in names}
    return {name: own.get(_plain(short), short) for name, short in extracted.items()}


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules that are frozen as a whole, learn as a whole, or hold no parameter."""
    for child in module.children():
        states = {parameter.requires_grad for parameter in child.parameters()}
        if len(states) == 2:
            yield from _outermost(child)
        else:
            yield child


def _prefix(model: SegmentationModel) -> str:
    return NATIVE if model.spec.encoder.startswith("smp:") else ENCODER


def _plain(name: str) -> str:
    """Feature extractors rename `stages.0` to `stages_0` and may wrap the net once more."""
    return name.replace(".", "_").removeprefix("model_").removeprefix("body_")


@functools.lru_cache(maxsize=16)
def _depths(encoder: str) -> dict[str, int]:
    """Layer number of every parameter of the whole timm network, 0 at the stem."""
    from timm.models import group_parameters

    net = _whole(encoder)
    if encoder.startswith("smp:"):
        return _depths_by_number(_in_order_of_use(net))
    if not hasattr(net, "group_matcher"):
        return _depths_by_number([name for name, _ in net.named_parameters()])
    numbered = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    return {_plain(name): int(index) for name, index in numbered.items()}


@functools.lru_cache(maxsize=16)
def _whole_names(encoder: str) -> dict[str, str]:
    """timm's own name of every parameter of the whole network."""
    return {_plain(name): name for name, _ in _whole(encoder).named_parameters()}


@functools.lru_cache(maxsize=16)
def _spared(encoder: str) -> set[str]:
    listed: set[str] = getattr(_whole(encoder), "no_weight_decay", set)()
    return {_plain(name) for name in listed}


def _whole(encoder: str) -> Any:
    """The whole timm network, or SMP's encoder, on the meta device, which makes no weights."""
    from zoo.models.meta import without_memory

    with without_memory():
        if encoder.startswith("smp:"):
            from segmentation_models_pytorch.encoders import get_encoder

            return get_encoder(encoder.removeprefix("smp:"), weights=None).to("meta")
        import timm

        return timm.create_model(encoder)


def _in_order_of_use(net: nn.Module) -> list[str]:
    """The names of the parameters as an image meets them; those that it does not meet come last."""
    import torch

    met: dict[nn.Module, None] = {}
    for module in net.modules():
        module.register_forward_pre_hook(lambda module, _: met.setdefault(module))
    net(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    own = {id(parameter): name for name, parameter in net.named_parameters()}
    used = [own[id(p)] for module in met for p in module.parameters(recurse=False)]
    return list(dict.fromkeys([*used, *own.values()]))


def _depths_by_number(names: list[str]) -> dict[str, int]:
    """Layer numbers where timm has none: a layer is what shares its first two numbers.

    `stages.0.blocks.1.norm.weight` belongs to layer `stages.0.blocks.1`; what has no number belongs
    to the layer before it, at the beginning to the stem.
    """
    order, depths, current = {"": 0}, {}, ""
    for name in names:
        found = re.match(NUMBERED, name)
        current = found[0] if found else current
        depths[_plain(name)] = order.setdefault(current, len(order))
    return depths
