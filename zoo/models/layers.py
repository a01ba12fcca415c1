"""One ordered partition of an encoder's layers, used for freezing and for layer-wise rates."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import nn

from zoo.common.errors import InputError, join_problems, nearest, shortened, type_words
from zoo.common.schema import plain_value
from zoo.models.meta import without_memory
from zoo.models.norms import BATCH_NORMS
from zoo.models.segmentation import SegmentationModel, hold_frozen

if TYPE_CHECKING:
    from zoo.registry.recipe import Stage

ENCODER = "net.encoder.model."
"""What the names of timm's own parameters begin with in a `SegmentationModel`."""

NATIVE = "net.encoder."
"""The same for an encoder that is SMP's own (`smp:NAME`)."""

SIDE = 256
"""The side in pixels of the image that SMP's own encoders run on to find their layers' order."""

NUMBERED = r"(?:[a-z]\w*\.)*?\d+\.(?:(?:[a-z]\w*\.)*?\d+\.)?"
"""The beginning of a parameter's name up to its second number, or to its only one."""


def encoder_layers(model: SegmentationModel) -> list[list[str]]:
    """Names of the encoder's parameters (as in `model.named_parameters()`), layer by layer.

    The first list is the stem, the last one the layer nearest to the decoder; together they hold
    every parameter of the encoder exactly once. The order is timm's own (`group_matcher`), asked of
    the whole network on the meta device, since feature extractors do not keep it; where timm
    defines no order, the numbers in the parameters' names do. So they do for SMP's own encoders,
    whose parameters are taken in the order in which the forward pass uses them.
    """
    prefix = _prefix(model)
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    short = [name.removeprefix(prefix) for name in names]
    depth = _whole(model.spec.encoder).depths
    if any(_plain(name) not in depth for name in short):
        depth = _depths_by_number(short)
    layers: dict[int, list[str]] = {}
    for name, own in zip(names, short, strict=True):
        layers.setdefault(depth[_plain(own)], []).append(name)
    return [layers[index] for index in sorted(layers)]


def spared_from_decay(model: SegmentationModel) -> set[str]:
    """The encoder's parameters that timm's `no_weight_decay()` names, by their names in `model`."""
    spared = _whole(model.spec.encoder).spared
    prefix = _prefix(model)
    names = (name for name, _ in model.named_parameters() if name.startswith(prefix))
    return {name for name in names if _plain(name.removeprefix(prefix)) in spared}


def unfreeze(model: SegmentationModel, fraction: float) -> None:
    """Unfreeze the top `fraction` (in [0, 1]) of the encoder's layers and freeze the rest.

    Every parameter is set, so the call can be repeated with any fraction. The decoder always
    learns. Call `train_mode` afterwards: it freezes the statistics of the frozen layers.
    """
    _set(model, _decoder_names(model) | _top_names(model, fraction))


def freeze(model: SegmentationModel, what: float | str | Sequence[str]) -> None:
    """Freeze layers of the encoder for a training loop of your own; everything else learns.

    `what`: the fraction in [0, 1] of its layers, counted from the stem (1: the whole encoder, 0:
    nothing; `unfreeze: 0.25` of a recipe's stage is 0.75), or timm's names of modules and
    parameters, with * and ?, such as `["conv1", "*.bn?"]`. Frozen layers are in evaluation
    mode, also after `model.train()`: their weights and BatchNorm statistics stay as they are under
    any optimizer, their dropout and stochastic depth are off. Every call starts anew. Raises
    InputError for another fraction and for names that match nothing.
    """
    if not isinstance(model, SegmentationModel):
        raise InputError(
            "zoo.freeze takes what zoo.create returned, not a wrapper or a part of it, got "
            f"{type_words(model)}."
        )
    given = plain_value(what)
    names = [given] if isinstance(given, str) else given
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        frozen, problems = _matching(model, names)
        if problems:
            encoder = model.spec.encoder
            raise InputError(join_problems(f"zoo.freeze does not fit {encoder}:", problems))
    elif type(given) in (int, float) and 0 <= given <= 1:
        layers = encoder_layers(model)
        count = max(len(layers) - learning_layers(len(layers), 1 - given), given > 0)
        frozen = {name for layer in layers[:count] for name in layer}
    else:
        raise InputError(
            "zoo.freeze takes the fraction of the encoder's layers to freeze, from 0 to 1, or a "
            f"list of timm's names of modules and parameters, got {type_words(what)}."
        )
    theirs: Any = model.net
    if hasattr(theirs, "unfreeze_encoder"):  # SMP's own freezing gives way
        theirs.unfreeze_encoder()
    parameters = dict(model.named_parameters())
    _set(model, parameters.keys() - frozen)
    for name in frozen:
        parameters[name].grad = None  # or weight decay and momentum would still move it
    model.holds_frozen = bool(frozen)
    model.train(model.training)


def set_learning(model: SegmentationModel, stage: Stage, epoch: int = 0) -> bool:
    """Unfreeze what `stage` trains in its epoch `epoch` (from 0) and freeze the rest.

    Returns whether that changed anything. Call `train_mode` afterwards, as for `unfreeze`. Raises
    InputError for a pattern that matches nothing.
    """
    return _set(model, learning_names(model, stage, epoch))


def learning_names(model: SegmentationModel, stage: Stage, epoch: int = 0) -> set[str]:
    """Names of the parameters that learn in epoch `epoch` (from 0) of `stage`.

    Raises InputError naming every pattern of `unfreeze_names` that matches nothing.
    """
    if stage.learn == "head":
        every = (f"net.{name}" for name, _ in model.net.named_parameters())
        head = {name for name in every if name.startswith("net.segmentation_head.")}
        if not head:
            raise InputError(
                f"{model.spec.name} has no separate segmentation head; use learn: decoder."
            )
        return head
    found = _decoder_names(model)
    if stage.learn == "decoder":
        return found
    if not stage.unfreeze_names:
        return found | _top_names(model, stage_fraction(stage, epoch))

    matched, problems = _matching(model, stage.unfreeze_names)
    if problems:
        where = f"stages.{stage.name}.unfreeze_names"
        raise InputError(
            join_problems(f"{where} does not fit the encoder {model.spec.encoder}:", problems)
        )
    return found | matched


def _matching(model: SegmentationModel, patterns: Sequence[str]) -> tuple[set[str], list[str]]:
    """The encoder's parameters that `patterns` match, and a problem for each that matches none.

    A pattern matches the name that a parameter, or a module that holds it, has in timm's whole net.
    """
    found: set[str] = set()
    whole, prefix = _whole(model.spec.encoder).names, _prefix(model)
    owners = {}
    for name in itertools.chain.from_iterable(encoder_layers(model)):
        short = name.removeprefix(prefix)
        own = whole.get(_plain(short), short)
        owners[name] = list(itertools.accumulate(own.split("."), "{}.{}".format))
    problems = []
    for pattern in patterns:
        matched = {n for n, names in owners.items() if any(fnmatchcase(o, pattern) for o in names)}
        found |= matched
        if not matched:
            close = nearest(pattern, list(dict.fromkeys(itertools.chain(*owners.values()))))
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            top = dict.fromkeys(names[0] for names in owners.values())
            problems.append(f"{pattern!r} matches nothing.{hint} Its modules: {shortened(top)}")
    return found, problems


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
    """Training mode for what is trained, evaluation mode for what is frozen.

    `hold_frozen` says which modules that is. With `frozen_statistics` every BatchNorm uses its
    running statistics and keeps them, whether its scale and shift learn or not.
    """
    model.train()
    hold_frozen(model)
    if frozen_statistics:
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which `model` is in evaluation mode; each module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


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


def _top_names(model: SegmentationModel, fraction: float) -> set[str]:
    """The parameters of the encoder's top `fraction` of layers."""
    if not 0 <= fraction <= 1:
        raise InputError(
            f"unfreeze is the fraction of the encoder's layers, in [0, 1], not {fraction}."
        )
    layers = encoder_layers(model)
    first = len(layers) - learning_layers(len(layers), fraction)
    return {name for layer in layers[first:] for name in layer}


def _prefix(model: SegmentationModel) -> str:
    return NATIVE if model.spec.encoder.startswith("smp:") else ENCODER


def _plain(name: str) -> str:
    """Feature extractors rename `stages.0` to `stages_0` and may wrap the net once more."""
    return name.replace(".", "_").removeprefix("model_").removeprefix("body_")


class _Whole(NamedTuple):
    """What a whole encoder says of its parameters, by their `_plain` names.

    `depths` are layer numbers, 0 at the stem; `names` are timm's own; `spared` get no weight decay.
    """

    depths: dict[str, int]
    names: dict[str, str]
    spared: set[str]


@functools.lru_cache(maxsize=16)
def _whole(encoder: str) -> _Whole:
    """Ask the whole timm network, or SMP's encoder, on the meta device, which makes no weights."""
    with without_memory():
        if encoder.startswith("smp:"):
            from segmentation_models_pytorch.encoders import get_encoder

            net: Any = get_encoder(encoder.removeprefix("smp:"), weights=None).to("meta")
        else:
            net = timm.create_model(encoder)
    names = [name for name, _ in net.named_parameters()]
    if encoder.startswith("smp:"):
        # in the order in which the forward pass uses them, unused ones last
        met: dict[nn.Module, None] = {}
        for module in net.modules():
            module.register_forward_pre_hook(lambda module, _: met.setdefault(module))
        net(torch.empty(1, 3, SIDE, SIDE, device="meta"))
        own = {id(parameter): name for name, parameter in net.named_parameters()}
        used = [own[id(p)] for module in met for p in module.parameters(recurse=False)]
        depths = _depths_by_number(list(dict.fromkeys([*used, *names])))
    elif hasattr(net, "group_matcher"):
        numbered = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
        depths = {_plain(name): int(index) for name, index in numbered.items()}
    else:
        depths = _depths_by_number(names)
    spared = {_plain(name) for name in getattr(net, "no_weight_decay", set)()}
    return _Whole(depths, {_plain(name): name for name in names}, spared)


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
