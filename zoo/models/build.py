"""From a description and weights already at hand to a module. Knows no network."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zoo.common.errors import InputError, join_problems, nearest, shortened
from zoo.models.decoders import DECODERS, smp_class
from zoo.registry.decoders import SMP, defaults
from zoo.registry.encoders import timm_version

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.models.segmentation import SegmentationModel
    from zoo.models.spec import ModelSpec


def smp_config(spec: ModelSpec) -> dict[str, Any]:
    """The constructor arguments of the SMP class that `spec` describes, with random weights."""
    return {
        "encoder_name": smp_encoder_name(spec.encoder),
        "encoder_weights": None,
        "in_channels": spec.in_chans,
        "classes": len(spec.classes),
        **smp_options(spec),
        **spec.encoder_args,
    }


def smp_options(spec: ModelSpec) -> dict[str, Any]:
    """The decoder's options as SMP's class takes them: a norm that it cannot build is left out."""
    options = dict(spec.decoder_args)
    if replaces_norm(spec):
        options["decoder_use_norm"] = "batchnorm"
    return options


def replaces_norm(spec: ModelSpec) -> bool:
    """Whether the norms of SMP's decoder are replaced, so that plain SMP cannot load the model."""
    return spec.decoder_args.get("decoder_use_norm") in ("groupnorm", "layernorm")


def smp_encoder_name(encoder: str) -> str:
    """SMP's name of an encoder: `tu-` before one of timm's, `smp:` taken off one of its own."""
    native = encoder.startswith("smp:")
    return encoder.removeprefix("smp:") if native else f"tu-{encoder}"


def build(spec: ModelSpec, encoder_file: Path | None = None) -> SegmentationModel:
    """Build the model of `spec`, its encoder from `encoder_file` (safetensors) or at random.

    Raises InputError where the file does not hold this encoder's weights, where the decoder cannot
    be built on the encoder, and where the installed timm does not have it.
    """
    from zoo.models.segmentation import SegmentationModel

    if not spec.encoder.startswith("smp:"):
        _check_installed(spec.encoder.partition(".")[0])
    if encoder_file is None:
        return SegmentationModel(_construct(spec), spec)
    state = read_weights(encoder_file)
    with _timm_reports() as report:
        net = _construct(spec, state)
    _check_report(report, spec, encoder_file)
    return SegmentationModel(net, spec)


def _check_installed(encoder: str) -> None:
    """Raise InputError where the installed timm does not have an encoder of the table."""
    import timm

    if timm.is_model(encoder):
        return
    version = timm_version()
    close = nearest(encoder, timm.list_models())
    instead = f", or take {' or '.join(close)}" if close else ""
    raise InputError(
        f"The installed timm {timm.__version__} has no encoder {encoder}; timm {version} has, from "
        f"which zoo's table was made. Run pip install 'timm=={version}'{instead}."
    )


def build_with_weights(spec: ModelSpec, state: dict[str, torch.Tensor]) -> SegmentationModel:
    """Build the model of `spec` and load `state`, the tensors of its net, strictly."""
    model = build(spec)
    check_keys(model.net, state)
    model.net.load_state_dict(state)
    return model


def check_keys(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
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
        hidden = len(problems) - 8
        shown = problems[:8] + ([f"... and {hidden} more"] if hidden > 0 else [])
        raise InputError(join_problems("The weights do not fit the model:", shown))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises InputError where it is missing or corrupt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"There is no weights file {path}. Give a .safetensors file.")
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}). Other formats are not loaded; "
            "download the file again or convert it with safetensors."
        ) from error


def in_smp(spec: ModelSpec) -> bool:
    """Whether the net is SMP's own class, which plain SMP can load."""
    return spec.smp_loadable and DECODERS[spec.decoder].smp_class is not None


def _construct(spec: ModelSpec, state: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """The net with random weights, or its encoder with those of `state`."""
    from zoo.models.network import allow_single_values

    build_net = _smp_net if in_smp(spec) else _own_net
    try:
        net: Any = build_net(spec, state)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, AssertionError, IndexError) as error:
        reason = str(error) or "the encoder refuses what the decoder asks for"
        raise InputError(
            f"{spec.name} cannot be built: {reason} ({type(error).__name__}). "
            f"`zoo list --decoder {spec.decoder}` lists the encoders that fit."
        ) from error
    allow_single_values(net.decoder)
    _replace_norms(net, spec)
    return cast("nn.Module", net)


def _replace_norms(net: Any, spec: ModelSpec) -> None:
    from zoo.models.norms import to_group_norm, to_layer_norm

    if replaces_norm(spec):
        grouped = spec.decoder_args["decoder_use_norm"] == "groupnorm"
        (to_group_norm if grouped else to_layer_norm)(net.decoder)
    if spec.norm == "group":
        to_group_norm(net)


def _smp_net(spec: ModelSpec, state: dict[str, torch.Tensor] | None) -> nn.Module:
    from zoo.models.smp_parts import replace_head

    config = smp_config(spec)
    if state is not None:
        config |= {"encoder_weights": True, "pretrained_cfg_overlay": {"state_dict": state}}
    net = smp_class(spec.decoder)(**config)
    replace_head(net)
    if _builds_too_much(net, spec):
        _rest_unused(net, spec)
    hub_config: Any = net.config  # what SMP would store if asked to save the net by itself
    hub_config["encoder_weights"] = None
    return net


def _builds_too_much(net: Any, spec: ModelSpec) -> bool:
    """Whether the encoder may have layers that the decoder does not look at.

    DPT's is the whole net. Of others timm builds what is in front of the last level alone where it
    can cut the net.
    """
    from timm.models._features import FeatureDictNet

    if spec.decoder == "dpt":
        return True
    known = defaults(spec.decoder)
    depth = spec.decoder_args.get("encoder_depth", known["encoder_depth"])
    cut = isinstance(getattr(net.encoder, "model", None), FeatureDictNet)
    return depth < SMP["unet"]["encoder_depth"] and not cut


def _rest_unused(net: nn.Module, spec: ModelSpec) -> None:
    """Keep what no output depends on out of training; SMP wants to find it in the file."""
    from zoo.models.unused import keep_as_buffers, unused_parameters

    def whole() -> nn.Module:
        return smp_class(spec.decoder)(**smp_config(spec)).to("meta")  # some layers do not ask

    unused = unused_parameters(whole, spec.in_chans, spec.img_size or 256)
    keep_as_buffers(net, [name for name in unused if name.startswith("encoder.")])


def _own_net(spec: ModelSpec, state: dict[str, torch.Tensor] | None) -> nn.Module:
    from zoo.models.adapter import build_network

    if state is None:
        return build_network(spec)
    return build_network(spec, pretrained=True, pretrained_cfg_overlay={"state_dict": state})


@contextlib.contextmanager
def _timm_reports() -> Iterator[list[str]]:
    """Collect what timm logs while it loads weights; it says nowhere else what was missing."""
    logger = logging.getLogger("timm.models._builder")
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _check_report(report: list[str], spec: ModelSpec, file: Path) -> None:
    classifier = _classifier_names(spec.encoder)
    for line in report:
        if found := re.match(r"Missing keys \((.*)\) discovered", line):
            names = [name for name in found.group(1).split(", ") if name not in classifier]
            if names:
                raise InputError(
                    f"{file} does not hold the weights of {spec.encoder}: {len(names)} tensors "
                    f"are missing, for example {shortened(names, 3)}."
                )
        if line.startswith("Unable to convert pretrained"):
            raise InputError(
                f"The weights of {spec.encoder} cannot be adapted to {spec.in_chans} input "
                "channels. Use in_chans=3 or encoder_weights=None."
            )
    if not any(line.startswith("Loading pretrained weights from state dict") for line in report):
        raise InputError(f"timm did not load {file} into {spec.encoder}.")


def _classifier_names(encoder: str) -> set[str]:
    """The classifier's tensors: timm leaves them out on purpose and reports them as missing."""
    from timm.models import get_pretrained_cfg

    settings = get_pretrained_cfg(encoder)
    named = () if settings is None else settings.classifier or ()
    heads = (named,) if isinstance(named, str) else named
    return {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
