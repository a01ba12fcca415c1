"""A model as one graph, for `torch.export` and ONNX: pixels or normalised images in, logits out."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2dSame
from torch import Tensor, nn

from zoo.common.errors import InputError, RunError, ZooError, extra, printable
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec

INPUT = "images"
LOUD = ("torch.onnx", "onnxscript", "onnx_ir")
RECORDING_S = 300
MOST_BYTES = 2**31 - 2**20
"""An ONNX file holds at most 2 GB; what is left of them is for the graph."""


@dataclass(frozen=True)
class GraphOptions:
    """What a graph holds besides the network.

    `size` is the only height and width in pixels that it takes, None for any. With `uint8` it takes
    pixels and normalises them itself. With `argmax` it gives class ids, uint8 B x H x W, in the
    place of logits. Images have the size that the network sees: no graph resizes them.
    """

    size: tuple[int, int] | None = None
    uint8: bool = False
    argmax: bool = False

    @property
    def output(self) -> str:
        """The name of what it gives."""
        return "ids" if self.argmax else "logits"


def graph_size(
    spec: ModelSpec, size: tuple[int, int] | None, given: bool
) -> tuple[int, int] | None:
    """The height and width that a graph of a model takes, None for any, where `size` is asked for.

    `given` says whether somebody asked. Raises InputError for a size that the model does not take.
    """
    window = spec.window
    if window is None or size == window or not given:
        return window or size
    words = f"{window[0]}x{window[1]}"
    asked = "dynamic" if size is None else f"{size[0]}x{size[1]}"
    raise InputError(
        f"{spec.name} takes images of {words} pixels only, not {asked}: its encoder is built for "
        f"that size. Leave the size out or give {words}; larger images take sliding-window "
        "inference."
    )


def recorded_size(spec: ModelSpec, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width in pixels of the images that a graph is recorded with; `size` is its own."""
    height, width = spec.example_size()
    return size or (height, width + spec.size_multiple)


class Graph(nn.Module):
    """A copy of a model on the CPU, in evaluation mode, between the ends of `options`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: SegmentationModel, options: GraphOptions):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()
        for name, convolution in _padded_alike(self.model).items():
            self.model.set_submodule(name, convolution)
        for name, module in list(self.model.named_modules()):
            bins = _bins(module)
            if bins is not None:
                self.model.set_submodule(name, AveragePooling(bins))
        self.options = options
        mean, std = (torch.tensor(values) * 255 for values in (model.spec.mean, model.spec.std))
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", std.reciprocal().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """What `GraphOptions` says of `images`, B x in_chans x H x W."""
        if self.options.uint8:
            images = (images.float() - self.mean) * self.scale
        logits: Tensor = self.model(images, factor=1.0)
        if not self.options.argmax:
            return logits
        if logits.shape[1] == 1:
            return (logits[:, 0] > 0).to(torch.uint8)
        return logits.argmax(dim=1).to(torch.uint8)

    def example(self) -> Tensor:
        """Images that the graph is recorded with.

        Two, whose deepest maps hold more than one value a side: torch.export takes a length of 1
        for fixed.
        """
        spec = self.model.spec
        shape = (2, spec.in_chans, *recorded_size(spec, self.options.size))
        if self.options.uint8:
            return torch.zeros(shape, dtype=torch.uint8)
        return torch.zeros(shape)


class AveragePooling(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, which keep their meaning at every size."""

    def __init__(self, bins: tuple[int, int]):
        super().__init__()
        self.bins = bins

    def forward(self, maps: Tensor) -> Tensor:
        """B x C x h x w to B x C x bins."""
        rows, columns = (self._weights(maps, axis) for axis in (0, 1))
        return rows @ maps @ columns.transpose(0, 1)

    def _weights(self, maps: Tensor, axis: int) -> Tensor:
        """Bins x length: what each row or column adds to the mean of each bin."""
        length, bins = maps.shape[axis - 2], self.bins[axis]
        places = torch.arange(length, device=maps.device)
        numbers = torch.arange(bins, device=maps.device)
        first, last = numbers * length // bins, ((numbers + 1) * length + bins - 1) // bins
        inside = (places >= first.unsqueeze(1)) & (places < last.unsqueeze(1))
        return inside.to(maps.dtype) / (last - first).unsqueeze(1).to(maps.dtype)


def _padded_alike(model: SegmentationModel) -> dict[str, nn.Module]:
    """The convolutions with TensorFlow's "same" padding, each written with a constant one.

    How much such a convolution pads depends on the size of its input, which torch.export carries
    from layer to layer in terms that soon take too long. It is the same wherever the input's sides
    are multiples of the stride, and they are where images are padded to multiples of the network's.
    The few that see other sides at an odd multiple of that are left as they are.
    """
    kinds = (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame)
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and getattr(module, "same_pad", True)
    }
    spec, aligned = model.spec, set(names)

    def look(module: Any, inputs: tuple[Tensor, ...]) -> None:
        sides = inputs[0].shape[-2:]
        if any(side % step for side, step in zip(sides, module.stride, strict=True)):
            aligned.discard(module)

    if not names or spec.window is not None:
        return {}
    hooks = [module.register_forward_pre_hook(look) for module in names]
    side = max(3, -(-spec.size_minimum // spec.size_multiple) | 1) * spec.size_multiple
    with torch.no_grad():
        model(torch.zeros(1, spec.in_chans, side, side), factor=1.0)
    for hook in hooks:
        hook.remove()
    return {names[module]: _constantly_padded(module) for module in aligned}


def _constantly_padded(module: Conv2dSame | StdConv2dSame | ScaledStdConv2dSame) -> nn.Module:
    """A convolution with "same" padding as one that pads alike whatever the size of its input."""
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    rows, columns = (max(0, (kernel - 1) * step + 1 - stride) for kernel, stride, step in sizes)
    padding = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    if isinstance(module, Conv2dSame):
        plain = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride,
            dilation=module.dilation, groups=module.groups, bias=module.bias is not None,
        )  # fmt: skip
        plain.weight, plain.bias = module.weight, module.bias
        return nn.Sequential(padding, plain)
    module.same_pad = False
    return nn.Sequential(padding, module)


def _bins(module: nn.Module) -> tuple[int, int] | None:
    """The bins of an adaptive average pooling that exporters cannot take at every size."""
    if not isinstance(module, nn.AdaptiveAvgPool2d):
        return None
    size = module.output_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    if rows is None or columns is None or rows == columns == 1:
        return None
    return rows, columns


def to_program(graph: Graph, limit_s: float = RECORDING_S) -> torch.export.ExportedProgram:
    """The graph as `torch.export` records it. Raises RunError where it cannot in `limit_s` seconds.

    Sizes that depend on each other through many layers, as those of Swin's windows do, can take it
    too long.
    """
    dynamic = torch.export.Dim.DYNAMIC
    axes = {0: dynamic} if graph.options.size else {0: dynamic, 2: dynamic, 3: dynamic}
    end = time.monotonic() + limit_s

    def check(*_: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"recording it takes more than {limit_s:g} seconds")

    hooks = [module.register_forward_pre_hook(check) for module in graph.modules()]
    try:
        with quiet(), _explained(graph):
            return torch.export.export(graph, (graph.example(),), dynamic_shapes=(axes,))
    finally:
        for hook in hooks:
            hook.remove()


def to_onnx(graph: Graph, recorded: torch.export.ExportedProgram | None = None) -> bytes:
    """The graph, as `to_program` recorded it if given, as an ONNX file with its weights inside.

    Raises InputError where the weights are larger than such a file may be, and RunError where
    torch's exporter fails.
    """
    extra("onnxscript", "export", "ONNX")
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    name = graph.model.spec.name
    if size > MOST_BYTES:
        raise InputError(
            f"The weights of {name} take {size / 1e9:.1f} GB; an ONNX file holds at most 2 GB. Use "
            "--format torch-export."
        )
    if recorded is None:  # not by the ONNX exporter: SMP's PSPNet takes other steps in it
        recorded = to_program(graph)
    with quiet(), _explained(graph):
        program: Any = torch.onnx.export(
            recorded,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[graph.options.output],
        )
        content: bytes = _with_axes(program.model_proto, graph).SerializeToString()
    return content


def _with_axes(proto: Any, graph: Graph) -> Any:
    """An ONNX model whose input and output say what their dynamic axes are."""
    sides = ["height", "width"] if graph.options.size is None else [None, None]
    logits: list[str | None] = ["batch", None, *sides]
    ids: list[str | None] = ["batch", *sides]
    for value in (proto.graph.input[0], proto.graph.output[0]):
        dimensions = value.type.tensor_type.shape.dim
        for dimension, name in zip(
            dimensions, ids if len(dimensions) == 3 else logits, strict=True
        ):
            if name is not None:
                dimension.dim_param = name
    return proto


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Exporters warn of what does not concern the user of a model, and `loggers` besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = {name: logging.getLogger(name).level for name in (*LOUD, *loggers)}
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def explained(problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a library raises into a RunError: `problem`, its reason, what to try."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:  # libraries raise what they meet
        first = error
        while first.__cause__ is not None and isinstance(first.__cause__, Exception):
            first = first.__cause__
        reason = " ".join(printable(first, " ").split())[:300].rstrip(".") or "no reason given"
        message = f"{problem}: {type(first).__name__}: {reason}. {advice}"
        raise RunError(message.rstrip()) from error


def _explained(graph: Graph) -> contextlib.AbstractContextManager[None]:
    spec = graph.model.spec
    size = "{}x{}".format(*spec.example_size())
    advice = f"Try a fixed size: zoo export --size {size}." if graph.options.size is None else ""
    return explained(f"torch cannot export {spec.name}", advice)
