"""Repositories and folders that segmentation-models-pytorch (SMP) wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from zoo.common import schema
from zoo.common.console import info
from zoo.common.errors import InputError, brief, join_problems, shortened, unknown
from zoo.common.schema import dotted
from zoo.models.spec import ModelSpec, model_spec, per_channel
from zoo.registry import encoders as timm_table
from zoo.registry.decoders import DECODERS
from zoo.registry.resolve import Resolved

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.registry.weights import Named

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OURS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")


def native_encoders() -> list[str]:
    """The names of SMP's own encoders, `timm-` ones of older versions included."""
    from segmentation_models_pytorch.encoders import get_encoder_names

    return sorted(get_encoder_names())


def spec_from_smp(config: dict[str, Any], source: str, named: Named | None = None) -> ModelSpec:
    """The description of an SMP model. SMP stores no class names and no normalisation.

    The registry's row `named` has them. Without one, classes are numbered, and mean and std are
    those of the encoder's own weights. Raises InputError for a model that zoo does not have, or
    that is not the one of the row.
    """
    decoders = {row.smp: name for name, row in DECODERS.items() if row.smp}
    kind, count, channels = (config.get(k) for k in ("_model_class", "classes", "in_channels"))
    problems = []
    if not isinstance(kind, str) or kind not in decoders:
        problems.append(f"_model_class: {unknown('class', str(kind), [*decoders])}")
    if type(count) is not int or not 1 <= count <= 255:
        problems.append(f"classes: should be 1 to 255, got {brief(count)}")
    if type(channels) is not int or not 1 <= channels <= 4096:
        problems.append(f"in_channels: should be 1 to 4096, got {brief(channels)}")
    if not isinstance(config.get("encoder_name"), str):
        problems.append("encoder_name: is missing")
    if config.get("aux_params") is not None:
        problems.append("aux_params: models with an auxiliary classification output are not read")
    if problems:
        raise InputError(join_problems(f"{source} has problems:", problems))
    if config.get("activation") is not None:
        info(f"{source} ends in {brief(config['activation'])}; zoo's model returns logits.")
    decoder, encoder = decoders[str(kind)], _encoder(config["encoder_name"])
    name, _, tag = encoder.partition(".")
    row = timm_table.weights().get((name, tag)) or timm_table.encoders().get(name)
    mean, std = IMAGENET if row is None else map(timm_table.numbers, (row.mean, row.std))
    extra = {key: value for key, value in config.items() if key[:1] != "_" and key not in OURS}
    resolved = Resolved(
        name=f"{decoder}-{encoder}",
        decoder=decoder,
        encoder=name,
        tag=tag or None,
        args={key: value for key, value in extra.items() if key != "img_size"},
        encoder_args={key: value for key, value in extra.items() if key == "img_size"},
        mean=mean,
        std=std,
    )
    try:
        spec = model_spec(resolved, int(count or 0), in_chans=int(channels or 0))
    except ValidationError as error:
        lines = [f"{dotted(place)}: {text}" for place, text in schema.problems(error, ModelSpec)]
        raise InputError(join_problems(f"{source} has problems:", lines)) from error
    if named is not None:
        return _as_named(spec, named, source)
    whose = "ImageNet's" if row is None else "the encoder's"
    info(f"{source} has no class names and no mean and std; using {whose} mean and std.")
    return spec


def _encoder(name: str) -> str:
    """Our spelling of an SMP encoder's name: timm's, or `smp:` before one of SMP's own.

    SMP builds most of its older `timm-` names from timm; those become timm's names here too.
    """
    from segmentation_models_pytorch.encoders import is_equivalent_to_timm_universal

    if is_equivalent_to_timm_universal(name):
        return name.removeprefix("timm-").replace("mobilenetv3", "tf_mobilenetv3")
    return name.removeprefix("tu-") if name.startswith("tu-") else f"smp:{name}"


def _as_named(spec: ModelSpec, named: Named, source: str) -> ModelSpec:
    """`spec` with what the registry's row says. Raises InputError where it is of another model."""
    model, colours = named.model, named.weights.classes or {}
    said: dict[str, Any] = {"decoder": named.name.partition("-")[0], "classes": len(colours)}
    said |= {"encoder": model.encoder.partition(".")[0]} | model.args
    held: dict[str, Any] = {"decoder": spec.decoder, "classes": len(spec.classes)}
    held |= {"encoder": spec.encoder.partition(".")[0]} | spec.decoder_args
    wrong = [
        f"{key} is {held.get(key)!r}, the row of {named.name} says {value!r}"
        for key, value in said.items()
        if held.get(key) != value
    ]
    if wrong:
        raise InputError(
            join_problems(f"{source} is not the model that the registry describes:", wrong)
        )
    told = {
        "name": named.name,
        "classes": list(colours),
        "palette": list(colours.values()),
        "license": model.license,
        "mean": per_channel(model.mean or spec.mean, spec.in_chans),
        "std": per_channel(model.std or spec.std, spec.in_chans),
    }
    return spec.model_copy(update=told)


def load_smp_state(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load the tensors of an SMP repository strictly; SMP itself translates its older names.

    Raises InputError for tensors that are missing, unknown or of another shape.
    """
    from zoo.models.build import with_tied_names

    try:
        net.load_state_dict(with_tied_names(net, state), strict=True)
    except (RuntimeError, KeyError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        found = [shortened(line.split(", "), 5) for line in lines[:8]]
        raise InputError(join_problems("The weights do not fit the model:", found)) from error
