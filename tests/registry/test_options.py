"""Options of decoders as data: the same as in the code, checked, and shown."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import segmentation_models_pytorch as smp

from zoo.common.errors import InputError
from zoo.leaderboard.lookup import show
from zoo.registry.decoders import (
    DECODERS,
    NO_OPTIONS,
    check_options,
    defaults,
    output_stride,
)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_the_options_are_those_of_the_code(decoder: str) -> None:
    row = DECODERS[decoder]
    if row.smp is not None:
        parameters = inspect.signature(getattr(smp, row.smp)).parameters.values()
        found = {p.name: p.default for p in parameters if p.name not in NO_OPTIONS | {"kwargs"}}
        assert list(defaults(decoder).items()) == list(found.items())
        return
    module = importlib.import_module(f"zoo.models.heads.{decoder}")
    made = inspect.signature(getattr(module, "parts", None) or module.network).parameters.values()
    keywords = {p.name: p.default for p in made if p.kind is p.KEYWORD_ONLY}
    assert list(keywords) == list(defaults(decoder))
    assert set(keywords.values()) <= {inspect.Parameter.empty}


def refusal(decoder: str, **given: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        check_options(decoder, given)
    header, *lines = str(caught.value).splitlines()
    assert header == f"These options of {decoder} cannot be used:"
    return [line.removeprefix("  - ") for line in lines]


def test_all_problems_of_the_options_come_at_once() -> None:
    assert refusal(
        "pspnet", bin=[1], bins=[], pooling="mean", kernels=[3, 4], dropout=1.0, channels="many",
        norm="instance", rates=3,
    ) == [
        "pspnet has no option bin. Did you mean bins? It has auxiliary, bins, channels, dropout, "
        "kernels, norm, pooling, rates, separable, upsampling.",
        "bins: has too few entries, got []",
        "pooling: should be 'average' or 'max', got 'mean'",
        "channels: should be a whole number, got 'many'",
        "kernels[1]: should be odd, got 4",
        "rates: should be a list, got 3",
        "norm: should be 'batch', 'group' or 'layer', got 'instance'",
        "dropout: should be less than 1, got 1.0",
    ]  # fmt: skip


def test_channels_that_cannot_be_shared() -> None:
    assert refusal("pspnet", kernels=[3, 5, 7]) == [
        "channels: 512 cannot be shared by 3 convolutions equally; take 510"
    ]
    check_options("pspnet", {"kernels": [3, 5, 7], "channels": 510})


def test_options_of_smps_classes() -> None:
    check_options("unet", {"decoder_use_norm": "layernorm", "decoder_channels": [64, 32, 16, 8, 4]})
    assert refusal("fpn", decoder_use_norm="layernorm")[0].startswith(
        "fpn has no option decoder_use_norm."
    )
    assert refusal("unet", decoder_use_norm="instancenorm") == [
        "decoder_use_norm: should be one of True, False, batchnorm, groupnorm, layernorm, "
        "identity, got 'instancenorm'"
    ]
    assert refusal("linear", stride=8) == ["linear has no option stride. It has none."]
    assert "encoder_depth" not in defaults("unet", adapted=True)


def test_output_strides() -> None:
    assert output_stride("deeplabv3", {}) == 8
    assert output_stride("deeplabv3plus", {}) == 16
    assert output_stride("deeplabv3plus", {"encoder_output_stride": 8}) == 8
    assert output_stride("pspnet", {}) == 8
    assert output_stride("unet", {}) is None
    assert output_stride("pan", {"encoder_output_stride": "x"}) is None
    assert refusal("pan", encoder_output_stride=7) == [
        "encoder_output_stride: should be 8, 16 or 32, got 7"
    ]


def test_show_lists_the_options() -> None:
    rows = {key: (value, origin) for key, value, origin in show("pspnet-resnet50")}
    assert rows["options.bins"] == ((1, 2, 3, 6), "the decoder's default")
    assert "dilation" in rows
    dpt = {key for key, _, _ in show("dpt-samvit_base_patch16")}
    assert "args.decoder_readout" in dpt
    assert "options.decoder_readout" not in dpt
