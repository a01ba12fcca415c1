"""The arguments of timm's builder that a user may give, and what they make of an encoder. No torch.

`timm_arguments.csv` says which of them each module of timm takes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from zoo.common.errors import InputError, join_problems, nearest
from zoo.common.schema import Strict, dotted, plain_value, problems
from zoo.registry.encoders import MAX_TEXT, Encoder, table_rows

ARGUMENTS_FILE = "timm_arguments.csv"

Rate = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Small = Annotated[float, Field(gt=0, le=1)]


class EncoderArguments(Strict):
    """What a user may give, and of which kind; docs/create.md says what each does."""

    act_layer: Text | None = None
    attn_drop_rate: Rate = 0.0
    bn_eps: Small | None = None
    bn_momentum: Small | None = None
    drop_block_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0
    init_values: Small | None = None
    no_embed_class: bool = False
    norm_eps: Small | None = None
    norm_layer: Text | None = None
    pad_type: Text | None = None
    patch_size: Annotated[int, Field(ge=1, le=64)] | None = None
    pos_drop_rate: Rate = 0.0
    proj_drop_rate: Rate = 0.0
    qk_norm: bool = False
    reg_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    window_size: Annotated[int, Field(ge=1, le=64)] | None = None


_CLASSIFIER = "it belongs to the classifier, which a segmentation model does not have"
_WEIGHTS = "say which weights with encoder_weights="
_SIZES = (
    "zoo chooses how the encoder takes images of other sizes; img_size= says which it is built for"
)
_SHAPE = "it makes another architecture; choose an encoder that is built so (`zoo list`)"
_EXPORT = "every model is built so that it can be exported"
INSTEAD = {
    **dict.fromkeys(("num_classes", "global_pool", "drop_rate"), _CLASSIFIER),
    "in_chans": "give in_chans= beside encoder_args",
    **dict.fromkeys(
        ("features_only", "out_indices", "feature_cls"), "the decoder chooses the feature maps"
    ),
    **dict.fromkeys(
        (
            "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict",
            "pretrained_filter_fn", "checkpoint_path",
        ),
        _WEIGHTS,
    ),
    "cache_dir": "the variable HF_HUB_CACHE says where files of the Hub are kept",
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), _EXPORT),
    "output_stride": "the decoder chooses it, see its options",
    "patch_drop_rate": "it leaves out patches, and every pixel needs its own",
    **dict.fromkeys(("dynamic_img_size", "dynamic_img_pad", "strict_img_size"), _SIZES),
    **dict.fromkeys(
        ("class_token", "depth", "depths", "embed_dim", "num_heads", "mlp_ratio"), _SHAPE
    ),
}  # fmt: skip
"""Arguments of timm that a user does not give, and what to do instead."""


@functools.cache
def accepted() -> dict[str, list[str]]:
    """The arguments that the nets of each timm module take, by module."""
    return {
        module: names.split("/") if names else [] for module, names in table_rows(ARGUMENTS_FILE)
    }


def check_encoder_args(encoder: Encoder, given: object) -> dict[str, Any]:
    """The given arguments as plain values.

    Raises InputError with everything that timm, this encoder or a segmentation model does not take.
    """
    plain = plain_value(given)
    if not isinstance(plain, dict):
        raise InputError(
            'encoder_args should be a mapping of arguments of timm, such as {"drop_path_rate": 0.1}'
            f", got {type(given).__name__}."
        )
    if wrong := encoder_problems(encoder, plain):
        raise InputError(join_problems(f"These arguments of {encoder.name} cannot be used:", wrong))
    return plain


def encoder_problems(encoder: Encoder, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with arguments for this encoder, one sentence each."""
    takes, wrong = accepted()[encoder.module], []
    for name in map(str, given):
        if name in takes:
            continue
        if name == "patch_size":
            modules = ", ".join(module for module, names in accepted().items() if name in names)
            wrong.append(
                f"patch_size: only plain transformers can be built with other patches (timm's "
                f"modules {modules}), and {encoder.name} is of {encoder.module}"
            )
        elif name in INSTEAD:
            wrong.append(f"{name}: leave it out; {INSTEAD[name]}")
        else:
            close = nearest(name, takes)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            has = ", ".join(takes) or "none"
            wrong.append(f"{name}: {encoder.name} does not take it.{hint} It takes: {has}")
    known = {str(name): value for name, value in given.items() if name in takes}
    try:
        EncoderArguments.model_validate(known)
    except ValidationError as error:
        wrong += [f"{dotted(place)}: {text}" for place, text in problems(error, EncoderArguments)]
    return wrong


def chosen_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's arguments of the encoder that a user or an overlay chose, not zoo."""
    known = EncoderArguments.model_fields
    return {name: value for name, value in arguments.items() if name in known}


def built_with(encoder: Encoder, arguments: Mapping[str, Any]) -> Encoder:
    """The row of the net that timm builds with these arguments.

    Another patch changes the strides of a plain transformer, and its size to whole patches;
    registers come to the class token that an odd number of prefix tokens includes.
    """
    changed: dict[str, str] = {}
    patch = arguments.get("patch_size")
    if type(patch) is int and "patch_size" in accepted()[encoder.module]:
        changed["reductions"] = "/".join(str(patch) for _ in encoder.reductions.split("/"))
        channels, *sides = encoder.input_size.split("/")
        whole = [str(-(-int(side) // patch) * patch) for side in sides]
        changed["input_size"] = "/".join([channels, *whole])
    if (registers := arguments.get("reg_tokens")) is not None:
        changed["prefix_tokens"] = str(int(encoder.prefix_tokens) % 2 + int(registers))
    return encoder._replace(**changed)
