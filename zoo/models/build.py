"""From a description and local weights to a model: SMP's own class, or an adapter for the rest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import FeatureDictNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.common.errors import InputError, join_problems, nearest, shortened
from zoo.models.dilation import plan_dilation
from zoo.models.meta import (
    Written,
    keep_as_buffers,
    sketched,
    unused_parameters,
    without_memory,
)
from zoo.models.network import Network, Parts, TimmEncoder, at_most, encoder_levels
from zoo.models.norms import to_group_norm, to_layer_norm
from zoo.models.pyramid import Pyramid, plan
from zoo.models.segmentation import SegmentationModel
from zoo.models.smp_parts import (
    DptOnPyramid,
    SmpOnPyramid,
    smp_class,
    smp_parts,
    with_optional_upsampling,
)
from zoo.models.spec import ModelSpec
from zoo.registry.decoders import (
    DECODERS,
    check_options,
    defaults,
    filled_options,
)
from zoo.registry.encoder_args import chosen_args
from zoo.registry.encoders import timm_version

RESAMPLED = {"patch_size", "window_size"}
"""Arguments of encoders to which timm resamples pretrained weights."""

MAY_NOT_RUN = {"no_embed_class", "norm_layer", "window_size"}
"""Arguments with which timm builds encoders that then fail on any image."""

CALLED_WEIGHTS = (".weight", ".bias", ".running_mean", ".running_var")
"""How the names of tensors end that are weights in any net."""

WHOLE_DEPTH = 5
"""Stages of an encoder that SMP counts as a whole one."""


def build(spec: ModelSpec, encoder_file: Path | None = None) -> SegmentationModel:
    """Build the model of `spec`, its encoder from `encoder_file` (safetensors) or at random.

    Raises InputError where the file does not hold this encoder's weights, where the decoder cannot
    be built on the encoder, and where the installed timm does not have it.
    """
    encoder = spec.encoder.partition(".")[0]
    if not encoder.startswith("smp:") and not timm.is_model(encoder):
        version = timm_version()
        close = nearest(encoder, timm.list_models())
        instead = f", or take {' or '.join(close)}" if close else ""
        raise InputError(
            f"The installed timm {timm.__version__} has no encoder {encoder}; timm {version}, from "
            f"which zoo's table was made, has it. Run pip install 'timm=={version}'{instead}."
        )
    pretrained: dict[str, Any] = {}
    if encoder_file is not None:
        state = read_weights(encoder_file)
        check_values(state, encoder_file)
        _check_fitting(spec)
        overlay = {"state_dict": state}
        pretrained = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        written = Written()
        with written if pretrained else contextlib.nullcontext():
            net = (_smp_net if in_smp(spec) else _adapted_net)(spec, pretrained)
        _check_runs(spec)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError,
            AssertionError) as error:  # fmt: skip
        reason = str(error) or "the encoder refuses what the decoder asks for"
        if given := chosen_args(spec.encoder_args):
            reason = f"timm knows no {reason}" if isinstance(error, KeyError) else reason
            raise InputError(
                f"{spec.name} cannot be built with encoder_args {given}: {reason} "
                f"({type(error).__name__}). Change or leave out one of them."
            ) from error
        raise InputError(
            f"{spec.name} cannot be built: {reason} ({type(error).__name__}). "
            f"`zoo list --decoder {spec.decoder}` lists the encoders that fit."
        ) from error
    if encoder_file is not None:
        if written.from_integers:
            raise InputError(
                f"{encoder_file} holds integers where {spec.encoder} has weights. Get it again."
            )
        _check_loaded(net.encoder, written, spec, encoder_file)
    if replaces_norm(spec):
        grouped = spec.decoder_args["decoder_use_norm"] == "groupnorm"
        (to_group_norm if grouped else to_layer_norm)(net.decoder)
    if spec.norm == "group":
        to_group_norm(net)
    return SegmentationModel(net, spec)


def _check_runs(spec: ModelSpec) -> None:
    """Run the encoder once, on the meta device, if it has arguments that it may not run with."""
    if not chosen_args(spec.encoder_args).keys() & MAY_NOT_RUN:
        return
    beside = {"img_size", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"}
    given = {k: v for k, v in spec.encoder_args.items() if k in beside}
    with sketched(), torch.no_grad():
        net = timm.create_model(spec.encoder, **chosen_args(spec.encoder_args), **given).eval()
        net(torch.empty(1, 3, *spec.example_size()))


def build_with_weights(spec: ModelSpec, state: dict[str, Tensor]) -> SegmentationModel:
    """Build the model of `spec` and load `state`, the tensors of its net, strictly."""
    model = build(spec)
    complete = with_tied_names(model.net, state)
    check_keys(model.net, complete)
    model.net.load_state_dict(complete)
    return model


def tied_names(net: nn.Module) -> list[list[str]]:
    """The names in `net`'s state dict that stand for one tensor, for each tensor with several."""
    names: dict[int, list[str]] = {}
    for name, tensor in sorted(net.state_dict(keep_vars=True).items()):
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def with_tied_names(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with every name of a tensor that `net` uses in several places.

    Files hold such a tensor once or under all of its names. Raises InputError where they differ.
    """
    complete = dict(state)
    for group in tied_names(net):
        held = [name for name in group if name in state]
        for name in held[1:]:
            one, other = state[held[0]], state[name]
            if not one.is_meta and not torch.equal(one, other):
                raise InputError(
                    f"The weights do not fit the model: {held[0]} and {name} are one tensor of the "
                    "model and differ in the file."
                )
        complete |= {name: state[held[0]] for name in group if held}
    return complete


def weights_id(state: Mapping[str, Tensor]) -> str:
    """`given-` and 12 hexadecimal digits that name these weights: how a record tells them apart.

    They are of a SHA-256 over names, shapes and values in fp32 (counters in int64).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        kind = torch.float32 if tensor.is_floating_point() else torch.int64
        values = tensor.detach().to("cpu", kind).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return f"given-{digest.hexdigest()[:12]}"


def checksum(state: Mapping[str, Tensor]) -> int:
    """A number that changes with any weight: the sum of all their bits, read as integers.

    It is exact, and so the same on every device; much faster than `weights_id`.
    """
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return sum(
        int(tensor.detach().view(kinds[tensor.element_size()]).sum(dtype=torch.int64))
        for tensor in state.values()
    )


def kinds_of_layers(net: nn.Module) -> dict[str, str]:
    """The class of every module by its place; SyncBatchNorm counts as BatchNorm2d."""
    kinds = {place: type(layer).__qualname__ for place, layer in net.named_modules()}
    return {at: "BatchNorm2d" if kind == "SyncBatchNorm" else kind for at, kind in kinds.items()}


def check_keys(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise InputError unless `state` has exactly the names and shapes of `net`."""
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = []
    if missing := sorted(wanted.keys() - given.keys()):
        problems.append(f"{len(missing)} tensors are missing: {shortened(missing, 5)}")
    if extra := sorted(given.keys() - wanted.keys()):
        problems.append(f"{len(extra)} tensors are not part of the model: {shortened(extra, 5)}")
    for name in sorted(wanted.keys() & given.keys()):
        if wanted[name] != given[name]:
            problems.append(f"{name} has shape {given[name]}, the model needs {wanted[name]}")
    if problems:
        raise InputError(join_problems("The weights do not fit the model:", problems, 8))


def check_values(
    state: dict[str, Tensor], source: Path | str, net: nn.Module | None = None
) -> None:
    """Raise InputError for tensors of `state` that are NaN, infinite or not floating point.

    Integers are allowed in counters, where the tensor of the same name in `net` holds them, and,
    where `net` has none of that name, in what is not called a weight. Buffers of `net` that are not
    called weights may be infinite, as limits are. `source` names the file.
    """
    wanted = {} if net is None else net.state_dict()
    buffers = set() if net is None else {name for name, _ in net.named_buffers()}
    kinds, broken = [], []
    for name, tensor in state.items():
        floating, weight = tensor.is_floating_point(), name.endswith(CALLED_WEIGHTS)
        if name in wanted:
            right = wanted[name].is_floating_point() == floating and not tensor.is_complex()
            right |= floating and name.endswith("num_batches_tracked")  # an average of models
        else:
            right = floating or not (weight or tensor.is_complex())
        if not right:
            kinds.append(f"{name} ({str(tensor.dtype).removeprefix('torch.')})")
        elif floating and tensor.numel():
            numbers = tensor.float() if tensor.element_size() == 1 else tensor  # 8-bit floats
            ends = torch.stack(numbers.aminmax())
            limits = name in buffers and not weight
            if (ends.isnan() if limits else ~ends.isfinite()).any():
                broken.append(name)
    problems = []
    if kinds:
        problems.append(f"numbers of another kind than the model's: {shortened(kinds, 5)}")
    if broken:
        problems.append(f"weights that are NaN or infinite: {shortened(broken, 5)}")
    if problems:
        text = f"{source} holds {' and '.join(problems)}."
        raise InputError(f"{text} Train the model again, or get the file again.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises InputError where it is missing or corrupt."""
    if not path.is_file():
        raise InputError(f"Weights file {path} does not exist. Give a .safetensors file.")
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}). Other formats are not loaded; "
            "download the file again or convert it with safetensors."
        ) from error


def in_smp(spec: ModelSpec) -> bool:
    """Whether the net is SMP's own class, so that plain SMP can load it."""
    return spec.smp_loadable and DECODERS[spec.decoder].smp is not None


def smp_config(spec: ModelSpec) -> dict[str, Any]:
    """The constructor arguments of the SMP class that `spec` describes, with random weights."""
    native = spec.encoder.startswith("smp:")
    return {
        "encoder_name": spec.encoder.removeprefix("smp:") if native else f"tu-{spec.encoder}",
        "encoder_weights": None,
        "in_channels": spec.in_chans,
        "classes": len(spec.classes),
        **_smp_options(spec),
        **spec.encoder_args,
    }


def replaces_norm(spec: ModelSpec) -> bool:
    """Whether the norms of SMP's decoder are replaced, so that plain SMP cannot load the model."""
    return spec.decoder_args.get("decoder_use_norm") in ("groupnorm", "layernorm")


def params_m(model: nn.Module) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def gmacs(spec: ModelSpec, height: int, width: int) -> float | None:
    """Multiply-accumulates of one image of this size in 1e9, by torch's counter.

    Counted on the meta device, so nothing is computed; None where a network cannot run there.
    """
    try:
        with without_memory():
            model = build(spec).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, spec.in_chans, height, width, device="meta"))
    except (RuntimeError, NotImplementedError):
        return None
    return float(counter.get_total_flops()) / 2e9


def _smp_net(spec: ModelSpec, pretrained: dict[str, Any]) -> Any:
    """SMP's own class on its encoder."""
    cls = smp_class(str(DECODERS[spec.decoder].smp))
    config = smp_config(spec)
    given = dict(config)
    if pretrained:
        overlay = pretrained["pretrained_cfg_overlay"]
        given |= {"encoder_weights": True, "pretrained_cfg_overlay": overlay}
    net: Any = cls(**given)
    net.set_submodule("segmentation_head", with_optional_upsampling(net.segmentation_head))
    # DPT's encoder is the whole net. Of others timm builds only what is in front of the last level
    # where it can cut the net.
    whole_depth = defaults(spec.decoder)["encoder_depth"]
    depth = spec.decoder_args.get("encoder_depth", whole_depth)
    if depth < whole_depth and 0 in net.encoder.out_channels:
        # SMP's FPN notices only when it runs that it needs a map which is not there
        with sketched():
            sketch = cls(**config).to("meta").eval()
        try:
            sketch(torch.empty(1, spec.in_chans, *spec.example_size(), device="meta"))
        except RuntimeError as error:
            raise InputError(
                f"{spec.name} cannot be built with encoder_depth {depth}: {spec.encoder} has no "
                f"map of stride 2, which {spec.decoder} then needs. Use {whole_depth}."
            ) from error
    cut = isinstance(getattr(net.encoder, "model", None), FeatureDictNet)
    if spec.decoder == "dpt" or (depth < WHOLE_DEPTH and not cut):

        def whole() -> nn.Module:
            return cls(**config).to("meta")  # some layers ignore the default device

        unused = unused_parameters(whole, spec.in_chans, spec.example_size())
        keep_as_buffers(net, [name for name in unused if name.startswith("encoder.")])
    hub_config: Any = net.config  # what SMP would store if asked to save the net by itself
    hub_config["encoder_weights"] = None
    return net


def _smp_options(spec: ModelSpec) -> dict[str, Any]:
    """The decoder's options as SMP's class takes them: a norm that it cannot build is left out."""
    options = dict(spec.decoder_args)
    if replaces_norm(spec):
        options["decoder_use_norm"] = "batchnorm"
    return options


def _adapted_net(spec: ModelSpec, pretrained: dict[str, Any]) -> Any:
    """A decoder of SMP, or a custom head, on an encoder of timm whose maps are adapted to it.

    `pretrained` are arguments of timm's builder. Raises InputError for options that the decoder
    does not have.
    """
    row = DECODERS[spec.decoder]
    check_options(spec.decoder, spec.decoder_args, adapted=True)
    module = importlib.import_module(f"zoo.models.heads.{spec.decoder}") if not row.smp else None
    if module is not None:
        options = filled_options(spec.decoder, spec.decoder_args)
        if hasattr(module, "network"):  # a decoder that reaches into the encoder
            return module.network(spec, pretrained, **options)
    else:
        options = defaults(spec.decoder) | _smp_options(spec)

    # the strides of the wanted maps, with the output stride that the options ask for
    strides = row.strides
    if row.smp is None and "stride" in options:
        strides = tuple(stride for stride in strides if stride >= options["stride"])
    elif row.smp is not None and (asked := options.get("encoder_output_stride")) is not None:
        strides = tuple(min(stride, asked) for stride in (*strides[:-1], asked))
    wanted = [stride for stride in strides if stride]

    # the levels that the decoder and its auxiliary head take
    levels, plain = encoder_levels(spec.encoder, **spec.encoder_args)
    levels = at_most(levels, spec.dilated)
    sources = plan(levels, wanted, row.optional) if wanted else []
    used = {position for source in sources for position in source.levels} or {len(levels) - 1}
    if row.auxiliary and options.get("auxiliary") != 0 and len(levels) > 1:
        used.add(len(levels) - 2)

    dilation = None
    if spec.dilated is not None:
        make_whole = functools.partial(
            timm.create_model, spec.encoder, features_only=True, **spec.encoder_args
        )
        dilation = plan_dilation(make_whole, spec.dilated)
    make = functools.partial(
        TimmEncoder,
        spec.encoder,
        [levels[position].number for position in sorted(used)],
        in_chans=spec.in_chans,
        norm=plain,
        dilation=dilation,
        **spec.encoder_args,
    )
    encoder = make(**pretrained)
    keep_as_buffers(encoder, unused_parameters(make, spec.in_chans, spec.example_size()))

    classes = len(spec.classes)
    if module is not None:
        return Network(encoder, module.parts(encoder.levels, classes, **options), classes)
    pyramid = Pyramid(encoder.levels, plan(encoder.levels, wanted, row.optional), row.divisor)
    channels = iter(pyramid.channels)
    listed = [next(channels) if stride else 0 for stride in strides]
    decoder, head = smp_parts(str(row.smp), listed, strides, spec.in_chans, classes, options)
    on_pyramid: nn.Module
    if row.smp == "DPT":
        on_pyramid = DptOnPyramid(pyramid, decoder)
    else:
        on_pyramid = SmpOnPyramid(pyramid, decoder, strides)
    return Network(encoder, Parts(on_pyramid, with_optional_upsampling(head)), classes)


def _check_fitting(spec: ModelSpec) -> None:
    """Raise InputError for arguments of the encoder that its pretrained weights do not fit.

    They give the net other parameters than it has without them, and timm resamples only patches,
    position embeddings and tables of relative positions.
    """

    def parameters(**arguments: Any) -> dict[str, tuple[int, ...]] | None:
        try:
            with sketched():
                net = timm.create_model(spec.encoder, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError):
            return None
        return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}

    given = chosen_args(spec.encoder_args)
    usual = parameters() if given.keys() - RESAMPLED else None
    wrong = {
        name: value
        for name, value in given.items()
        if name not in RESAMPLED and parameters(**{name: value}) != usual
    }
    if wrong:
        raise InputError(
            f"The pretrained weights of {spec.encoder} do not fit encoder_args {wrong}: the net "
            "has other parameters then. Leave that out, or start from random weights with "
            "encoder_weights=None (on the command line: --encoder-weights none)."
        )


def _check_loaded(encoder: nn.Module, written: Written, spec: ModelSpec, file: Path) -> None:
    """Raise InputError unless timm loaded every tensor of the encoder from the file.

    timm says so only in its log, so `written` recorded which tensors were loaded.
    """
    cfg = timm.get_pretrained_cfg(spec.encoder)
    named = () if cfg is None else cfg.classifier or ()
    left_out = tuple(f"{head}." for head in ((named,) if isinstance(named, str) else named))
    missing = {}
    for name, tensor in encoder.state_dict().items():
        own = name.removeprefix("model.").removeprefix("model.")
        if tensor.numel() and tensor not in written and not own.startswith(left_out):
            missing[own] = tensor
    if not missing:
        return
    first = [name for name, tensor in missing.items() if spec.in_chans in tensor.shape[1:2]]
    if spec.in_chans != 3 and len(first) == len(missing):
        raise InputError(
            f"The weights of {spec.encoder} cannot be adapted to {spec.in_chans} input channels. "
            "Use in_chans=3 or encoder_weights=None."
        )
    raise InputError(
        f"{file} does not hold the weights of {spec.encoder}: {len(missing)} tensors are missing, "
        f"for example {shortened(list(missing), 3)}."
    )
