"""Graphs in int8: the ranges of activations are taken from training images (calibration)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.common.console import progress_bar
from zoo.common.errors import InputError, shortened
from zoo.data.dataset import Dataset, Sample
from zoo.data.inspect.scan import data_hash
from zoo.data.load import load_dataset
from zoo.data.pixels.images import read_image
from zoo.data.split import as_recorded
from zoo.evaluation.evaluate import check_input
from zoo.inference.exported import Calibration, GraphNetwork, Method, import_runtime
from zoo.inference.graphs import INPUT, Graph, GraphOptions, explained, quiet
from zoo.inference.tiling import plan_windows, predict_tiles
from zoo.models.segmentation import SegmentationModel, padded_to, rescaled
from zoo.registry.encoders import encoders

SPLIT = "train"
IMAGES, CHECKED = 128, 16
"""How many images a graph is calibrated on, and how many others it is then compared on."""
MOST_CHECKED_SIDE = 1024
"""The most pixels on each side of these others."""


def quantisation_method(model: SegmentationModel, format: str) -> Method:
    """How a model is quantised in onnx or openvino. Raises InputError where it cannot be."""
    attention = _has_attention(model)
    if format == "openvino":
        return "smoothquant" if attention else "nncf"
    if attention:
        raise InputError(
            f"{model.spec.name} cannot be quantised to int8 in ONNX: its encoder "
            f"{model.spec.encoder} has attention, whose activations need SmoothQuant, and ONNX "
            "Runtime has none. Use --format openvino, or leave out --int8."
        )
    return "minmax"


def _has_attention(model: SegmentationModel) -> bool:
    """Whether the encoder is a transformer, or has attention beside its convolutions."""
    row = encoders().get(model.spec.encoder.partition(".")[0])
    if row is not None:
        return row.kind in ("transformer", "hybrid")
    from segmentation_models_pytorch.encoders.mix_transformer import MixVisionTransformerEncoder

    return isinstance(model.net.encoder, MixVisionTransformerEncoder)


class CalibrationImages:
    """The images that a graph is calibrated on, and others to compare it with its model on.

    `IMAGES` of the train split, chosen evenly. The others are of val, or of train where there is no
    val. `run` is what named the model: a run that divided a folder into train and val divides it
    here too. `described` is what the JSON beside a file says of it. Raises InputError for a model
    that should not be in int8 in this format, for data without a train split and for images that
    cannot be read or that the model does not take.
    """

    def __init__(
        self, model: SegmentationModel, run: object, data: str | Path | Dataset, format: str
    ):
        method = quantisation_method(model, format)
        dataset = load_dataset(data)
        if isinstance(run, str | Path):
            dataset = as_recorded(dataset, run, SPLIT)
        if not dataset.splits.get(SPLIT):
            raise InputError(
                f"{dataset.root} has no images to calibrate on: its splits are "
                f"{shortened(dataset.splits) or 'none'}. Calibration takes those of the split "
                f"{SPLIT}, never those that a model is tested on."
            )
        check_input(model, dataset)
        self.dataset, self.spec = dataset, model.spec
        known, others = dataset.splits[SPLIT], dataset.splits.get("val", [])
        if not others and len(known) > 1:
            others = _evenly(known, min(CHECKED, -(-len(known) // 5)))
            known = [sample for sample in known if sample not in others]
        self.samples = _evenly(known, IMAGES)
        self.others = _evenly(others or known, CHECKED)
        self.described = Calibration(
            data=dataset.name,
            data_hash=data_hash(dataset, SPLIT),
            split=SPLIT,
            images=len(self.samples),
            method=method,
        )

    def inputs(self, options: GraphOptions) -> Iterator[NDArray[Any]]:
        """What a graph gets for each of the images; of one that is seen in windows, one window."""
        options = dataclasses.replace(options, argmax=False)
        for number, sample in enumerate(self.samples):
            given: list[NDArray[Any]] = []

            def keep(images: NDArray[Any], given: list[NDArray[Any]] = given) -> NDArray[Any]:
                given.append(images)
                shape = (len(images), len(self.spec.classes), *images.shape[-2:])
                return np.zeros(shape, np.float32)

            network = GraphNetwork("none", keep, self.spec, options, "fp32")
            pixels = self._pixels(sample)
            windows = plan_windows(self.spec, *pixels.shape[-2:], size=options.size)
            for _ in predict_tiles(network, self.spec, pixels, windows):
                pass
            yield given[number % len(given)]

    def compared(self, options: GraphOptions) -> list[list[Tensor]]:
        """The others, uint8 1 x C x H x W as the network sees them, at one size and at an odd one.

        The size is the median of theirs, the odd one three quarters of that: they are cut, or
        padded, to it. A graph of one size gets that.
        """
        images = []
        for sample in self.others:
            pixels = self._pixels(sample).float()
            factor = self.spec.input_factor(*pixels.shape[-2:])
            images.append(rescaled(pixels, factor) if factor != 1 else pixels)
        sides = np.median([image.shape[-2:] for image in images], axis=0)
        height, width = (min(int(side), MOST_CHECKED_SIDE) for side in sides)
        sizes = [options.size or (height, width)]
        if options.size is None:
            sizes.append((height * 3 // 4 | 1, width * 3 // 4 | 1))
        return [[_fitted(image, size) for image in images] for size in sizes]

    def _pixels(self, sample: Sample) -> Tensor:
        """An image, uint8 1 x C x H x W."""
        return torch.from_numpy(read_image(sample.image, self.dataset)).permute(2, 0, 1)[None]


def _evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many of some samples, the first and the last among them."""
    places = np.linspace(0, len(samples) - 1, min(most, len(samples))).round()
    return [samples[int(place)] for place in places]


def _fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of an image, float 1 x C x H x W, padded where it is smaller, as uint8."""
    top, left = (
        max(0, side - most) // 2 for side, most in zip(image.shape[-2:], size, strict=True)
    )
    middle = image[..., top : top + size[0], left : left + size[1]]
    fitted: Tensor = padded_to(middle, 1, size).round().clamp(0, 255).to(torch.uint8)
    return fitted


class _Inputs:
    """The inputs of a graph, as often as they are asked for, with a progress bar for each pass.

    ONNX Runtime calls `get_next`, NNCF iterates.
    """

    def __init__(self, images: CalibrationImages, options: GraphOptions, bar: Any):
        self._images, self._options, self._bar = images, options, bar
        self._task = bar.add_task("calibrate", total=len(self))
        self._once = iter(self)

    def __len__(self) -> int:
        return len(self._images.samples)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        self._bar.reset(self._task)
        for given in self._images.inputs(self._options):
            yield given
            self._bar.advance(self._task)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        given = next(self._once, None)
        return None if given is None else {INPUT: given}


def quantised_openvino(model: Any, graph: Graph, images: CalibrationImages) -> Any:
    """A model of OpenVINO, in which `graph` is, in int8 but for its depthwise convolutions.

    Raises RunError where NNCF cannot do that.
    """
    nncf = import_runtime("nncf", "int8 for OpenVINO")
    attention = images.described.method == "smoothquant"
    kind = nncf.ModelType.TRANSFORMER if attention else None
    with _quantising(graph, "NNCF") as bar:
        inputs = _Inputs(images, graph.options, bar)
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=kind,
            ignored_scope=nncf.IgnoredScope(names=_depthwise_operations(model)),
        )


def _depthwise_operations(model: Any) -> list[str]:
    """The depthwise convolutions of a model of OpenVINO.

    They stay in floating point: they take little time, and most of the accuracy is lost in them.
    """
    convolutions = [op for op in model.get_ops() if op.get_type_name() == "GroupConvolution"]
    weights = ((op, list(op.input(1).get_shape())) for op in convolutions)
    return [op.get_friendly_name() for op, shape in weights if shape[1:3] == [1, 1]]


def quantised_onnx(content: bytes, graph: Graph, images: CalibrationImages, folder: Path) -> bytes:
    """An ONNX file, in which `graph` is, in int8; drafts are written to `folder`.

    Depthwise convolutions and those before them are left out. Weights have a range for each
    channel, activations one for each tensor, from their least to their largest value. Raises
    RunError where ONNX Runtime cannot do that.
    """
    library = import_runtime("onnxruntime.quantization", "int8 for ONNX")
    source, prepared, done = (folder / f"{name}.draft" for name in ("fp32", "prepared", "int8"))
    source.write_bytes(content)
    with _quantising(graph, "ONNX Runtime") as bar:
        library.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        library.quantize_static(
            prepared,
            done,
            _Inputs(images, graph.options, bar),
            per_channel=True,
            activation_type=library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
            nodes_to_exclude=_unquantised_nodes(prepared),
        )
    return done.read_bytes()


def _unquantised_nodes(path: Path) -> list[str]:
    """The names of the convolutions of an ONNX file that stay in floating point.

    These are the depthwise ones and those that their inputs come from: ONNX Runtime would round
    what these give before it is clipped, in too wide a range.
    """
    graph = import_runtime("onnx", "ONNX").load(str(path)).graph
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    unquantised = set()
    for node in graph.node:
        grouped = any(entry.name == "group" and entry.i > 1 for entry in node.attribute)
        if node.op_type == "Conv" and grouped and shapes.get(node.input[1], [0, 0])[1] == 1:
            unquantised.add(node.name)
            before = makers.get(node.input[0])
            while before is not None and before.op_type != "Conv" and before.input:
                before = makers.get(before.input[0])
            if before is not None:
                unquantised.add(before.name)
    return sorted(unquantised)


@contextlib.contextmanager
def _quantising(graph: Graph, library: str) -> Iterator[Any]:
    """A progress bar; what the library prints is lost, what it raises is a RunError."""
    problem = f"{library} cannot quantise {graph.model.spec.name}"
    with (
        explained(problem),
        quiet("nncf", "root", "torch"),
        contextlib.redirect_stdout(io.StringIO()),
        progress_bar() as bar,
    ):
        yield bar
