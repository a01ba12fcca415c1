"""Number formats and memory of training: what stays in float32, what a CPU does faster."""

from __future__ import annotations

import copy
import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.models.segmentation import SegmentationModel
from zoo.training.engine.placement import keep_float32, speed_up_cpu


def net() -> SegmentationModel:
    return create("fpn-test_convnext", classes=3, encoder_weights=None).train()


def test_modules_stay_in_float32_where_the_recipe_says_so() -> None:
    model = net()
    assert keep_float32(model, ["segmentation_head", "encoder.model.stem*"])[-1] == (
        "segmentation_head"
    )
    seen: dict[str, torch.dtype] = {}
    for name in ("segmentation_head.0", "decoder.p5"):
        model.net.get_submodule(name).register_forward_hook(
            lambda *given, name=name: seen.update({name: given[2].dtype})
        )
    for each in (model, copy.deepcopy(model)):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            each(torch.randn(2, 3, 32, 32))
            assert torch.is_autocast_enabled("cpu")
        assert seen == {"segmentation_head.0": torch.float32, "decoder.p5": torch.bfloat16}


def depthwise(side: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, side, groups=8, **options)


@pytest.mark.parametrize(
    ("conv", "inside"),
    [
        (depthwise(stride=2), torch.float32),
        (depthwise(dilation=2), torch.float32),
        (depthwise(5), torch.float32),
        (depthwise(), torch.bfloat16),
        (depthwise(1, stride=2), torch.bfloat16),
        (nn.Conv2d(8, 8, 3, stride=2, groups=2), torch.bfloat16),
        (nn.Conv2d(8, 8, 5), torch.bfloat16),
        (nn.Conv2d(1, 8, 5), torch.bfloat16),
    ],
)
def test_convolutions_that_are_slow_in_bfloat16_train_in_float32(
    conv: nn.Conv2d, inside: torch.dtype
) -> None:
    model, seen = net(), []
    model.net.add_module("extra", conv)
    speed_up_cpu(model)
    real = conv._conv_forward

    def look(images: Tensor, *rest: Any) -> Tensor:
        seen.append(torch.bfloat16 if torch.is_autocast_enabled("cpu") else images.dtype)
        return real(images, *rest)

    conv._conv_forward = look  # type: ignore[method-assign]
    images = torch.randn(2, conv.in_channels, 9, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.train()(images).dtype == torch.bfloat16
        assert conv.eval()(images).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert seen == [inside, torch.bfloat16]
    assert conv(images.float()).dtype == torch.float32


def test_a_faster_model_keeps_its_weights_names_and_scores() -> None:
    model = create("fpn-mobilenetv2_100", classes=3, encoder_weights=None).eval()
    faster = copy.deepcopy(model)
    speed_up_cpu(faster)
    faster = copy.deepcopy(faster)  # as for averaged weights
    assert list(faster.state_dict()) == list(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(faster(images), model(images))


def test_the_gradient_of_a_faster_convolution_is_that_of_float32() -> None:
    model, conv = net(), depthwise(stride=2)
    images = torch.randn(2, 8, 9, 9).bfloat16()
    [expected] = torch.autograd.grad(conv(images.float()).square().sum(), conv.weight)
    model.net.add_module("extra", conv)
    speed_up_cpu(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = conv(images).square().sum()
    [found] = torch.autograd.grad(loss, conv.weight)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_what_stays_in_float32_is_not_lowered_again() -> None:
    model = create("fpn-mobilenetv2_100", classes=3, encoder_weights=None).train()
    name = "encoder.model.blocks.1.0.conv_dw"
    keep_float32(model, [name])
    speed_up_cpu(model)
    conv, images = model.net.get_submodule(name), torch.randn(2, 96, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(images.bfloat16()).dtype == torch.float32


PAGES = """
import resource, torch
from zoo.training.engine.placement import _keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**22)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
left = faults()
_keep_freed_memory()
faults()
print(left, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    """Without the setting each of 20 tensors of 16 MB takes its pages anew.

    glibc raises its threshold by itself in some of the runs; a threshold that is set stays.
    """
    fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    said = subprocess.check_output([sys.executable, "-c", PAGES], text=True, env=fixed)
    left, kept = map(int, said.split())
    assert kept < left / 10


def test_a_pattern_that_matches_no_module_is_an_error() -> None:
    with pytest.raises(InputError) as caught:
        keep_float32(net(), ["segmentation_heat", "decoder*", "zzz"])
    text = str(caught.value)
    assert "'segmentation_heat' matches no module; near it: segmentation_head" in text
    assert "'zzz' matches no module; near it: encoder, decoder" in text
    assert "'decoder*'" not in text
