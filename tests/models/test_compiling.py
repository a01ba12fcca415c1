"""TorchScript, tracing, torch.compile and torch.export of every kind of network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.models.segmentation import SegmentationModel

ENCODER = "test_resnet"
SCRIPTED = ["unet", "fpn", "deeplabv3plus", "pspnet_lite", "manet", "linknet", "segformer"]
SCRIPTED += ["upernet", "pan", "deeplabv3", "pspnet", "linear", "fcn"]
QUICK = {"fpn", "deeplabv3plus", "linear"}
"""A decoder without pooling, one with a pooled branch, and a head that is not SMP's."""

Forward = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and tracing warns of shapes
        yield


def made(name: str, **changes: object) -> SegmentationModel:
    """A model in evaluation mode, whose running statistics have seen some images."""
    torch.manual_seed(0)
    model = create(name, classes=2, encoder_weights=None)
    with torch.no_grad():
        model(torch.randn(4, 3, 128, 128))
    model.spec = model.spec.model_copy(update=changes)
    return model.eval()


def check(found: Forward, wanted: Forward, sizes: list[tuple[int, int]]) -> None:
    for count, size in enumerate(sizes, 1):
        images = torch.randn(count, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(found(images), wanted(images), atol=1e-4, rtol=1e-4)


def decoders(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in names]


COMPILED = pytest.mark.parametrize(
    "decoder", ["linear", "unet", "upernet", "pspnet", "dpt", "deeplabv3plus"]
)


@pytest.mark.parametrize("decoder", decoders(SCRIPTED))
def test_scripted(decoder: str) -> None:
    model = made(f"{decoder}-{ENCODER}")
    check(torch.jit.script(model.net), model.net, [(128, 128), (160, 192)])
    check(torch.jit.script(model), model, [(128, 128), (150, 203)])
    assert model.net.training is False


@pytest.mark.parametrize("decoder", decoders([*SCRIPTED, "unetplusplus", "dpt"]))
def test_traced(decoder: str) -> None:
    model, images = made(f"{decoder}-{ENCODER}"), torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        net, whole = torch.jit.trace(model.net, images), torch.jit.trace(model, images)
    check(net, model.net, [(128, 128), (160, 192)])
    check(whole, model, [(128, 128), (150, 203)])  # the trace pads as the model does


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"input_scale": 1.25}, [(64, 64), (50, 70)]),
        ({"input_side": 48, "input_scale": 1.5}, [(64, 96), (100, 70)]),
    ],
)
def test_the_size_that_the_network_sees(
    way: str, changes: dict[str, object], sizes: list[tuple[int, int]]
) -> None:
    model = made(f"linear-{ENCODER}", **changes)
    given = (torch.randn(1, 3, 64, 96),) if way == "trace" else ()
    check(getattr(torch.jit, way)(model, *given), model, sizes)


def test_fx() -> None:
    model = made(f"unet-{ENCODER}")
    check(torch.fx.symbolic_trace(model.net), model.net, [(128, 128), (160, 192)])


def test_exported_for_every_size() -> None:
    model, dynamic = made(f"linear-{ENCODER}"), torch.export.Dim.DYNAMIC
    images = torch.randn(2, 3, 64, 96)  # need no padding
    exported = torch.export.export(
        model, (images,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    # a guard compares strides of the example, which no operation of the graph needs
    check(exported.module(check_guards=False), model, [(64, 96), (70, 90), (150, 203)])


class Square(nn.Module):
    """A net that takes 64 x 64 pixels only."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2] != 64 or images.shape[-1] != 64:
            raise ValueError("not 64 x 64")
        return images[:, :2] - images.mean(dim=(1, 2, 3), keepdim=True)


def test_scripted_windows() -> None:
    spec = made(f"linear-{ENCODER}").spec.model_copy(update={"img_size": 64})
    model = SegmentationModel(Square(), spec)
    check(torch.jit.script(model), model, [(64, 64), (40, 64), (70, 130)])


def test_a_network_that_torchscript_cannot_compile_is_refused() -> None:
    model = made("linear-test_vit")
    message = r"TorchScript cannot compile linear-test_vit \(.+\)\. Use torch\.export or torch\.jit"
    with pytest.raises(InputError, match=message):
        torch.jit.script(model)


@pytest.mark.long
@COMPILED
def test_compiled_without_a_break(decoder: str) -> None:
    torch.compiler.reset()
    model = made(f"{decoder}-{ENCODER}")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    check(compiled, model, [(128, 128)])
    model.train()
    for count in (2, 1):
        compiled(torch.randn(count, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.net.decoder.parameters())


@pytest.mark.long
@COMPILED
def test_exported(decoder: str) -> None:
    model = made(f"{decoder}-{ENCODER}")
    images = torch.randn(2, 3, 128, 128)
    for net in (model.net, model):
        exported = torch.export.export(net, (images,))
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(images), net(images))
    torch.export.export(model.train(), (images[:1],))
