"""What runs the network of a model: torch on one device, or another runtime on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.common.errors import InputError, unknown
from zoo.creation.create import load_trained
from zoo.creation.locate import is_exported
from zoo.hub.folder import known_training
from zoo.inference.exported import open_exported
from zoo.inference.runtimes import BACKENDS, runtime_network
from zoo.inference.tiling import model_logits
from zoo.models.build import weights_id
from zoo.models.segmentation import SegmentationModel, normalise, rescaled
from zoo.models.spec import ModelSpec
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import default_device

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
"""Convolutions that use their weights as they are stored, by their exact type."""
BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""What is folded into them, by its exact type."""
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers whose weights may be bf16: their sums are float32 in any case."""
LEAST_SIDE = 64
"""The least side in pixels of the image that a folded network is tried on."""
ROUNDING = 1e-4
"""How far folded logits may be from others, as a fraction of the largest one."""


class Network(Protocol):
    """What runs the network of a model on one device: torch, ONNX Runtime or OpenVINO.

    `precision` is fp32, bf16, fp16 or int8; `folded` says whether BatchNorm is part of the
    convolutions before it; `size` is the only height and width in pixels that the network takes,
    None where it takes any. With `ids_only` its logits tell the class and nothing else.
    """

    backend: str
    precision: str
    folded: bool
    device: torch.device
    size: tuple[int, int] | None
    ids_only: bool

    def __call__(self, images: Tensor, factor: float) -> Tensor:
        """Logits B x K x h x w, float on `device`, of uint8 images B x C x H x W.

        The images are resized by `factor` before the network. h x w is the size of the network's
        input or that of the images; whoever needs another resizes them bilinearly.
        """
        ...


class TorchNetwork:
    """A model as torch runs it, in evaluation mode and channels last.

    The model itself stays as it is: a copy runs, which shares its tensors where device and layout
    are the same. `precision`: fp32, bf16, fp16, or auto for the fastest that the device has; in
    bf16 a network whose weights all belong to convolutions and linear layers is bf16 as a whole,
    others use autocast. `fold` makes BatchNorm a part of the convolutions before it (see
    `fold_batch_norm`), `compile` calls torch.compile. Raises InputError for what the device cannot
    do.
    """

    backend = "torch"
    size: tuple[int, int] | None = None
    ids_only = False

    def __init__(
        self,
        model: SegmentationModel,
        *,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        fold: bool = False,
        compile: bool = False,
    ):
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, self.device)
        if compile and self.device.type == "cpu":
            raise InputError(
                "compile (--compile) is for GPUs: on CPUs it took three minutes and made U-Nets "
                "1.6 times slower. Leave it out."
            )
        self.spec = model.spec
        self.model = copy_to(model, self.device).eval()
        self.folded = fold and fold_batch_norm(self.model)
        self.model.to(memory_format=torch.channels_last)
        self._cast = self.folded and self.precision == "bf16" and _only_weighted(self.model)
        if self._cast:
            self.model.to(torch.bfloat16)
        if compile:
            self.model.net.compile(dynamic=True)

    @torch.inference_mode()
    def __call__(self, images: Tensor, factor: float) -> Tensor:
        """See `Network`."""
        if not self._cast:
            return model_logits(
                self.model, images, factor, precision=self.precision, device=self.device
            )
        inputs = rescaled(normalise(images, self.spec, self.device), factor)
        logits: Tensor = self.model(inputs.to(torch.bfloat16), factor=1.0)
        return logits


def copy_to(model: SegmentationModel, device: torch.device) -> SegmentationModel:
    """A copy of a model on `device` that shares every tensor which is there already."""
    placed: dict[int, Tensor] = {}
    for parameter in model.parameters():
        placed[id(parameter)] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
    for buffer in model.buffers():
        placed[id(buffer)] = buffer.detach().to(device)
    return copy.deepcopy(model, placed)


@torch.no_grad()
def fold_batch_norm(model: SegmentationModel) -> bool:
    """Fold every BatchNorm of `model` into the convolution before it, in place.

    The pairs are found by running a small image: a BatchNorm whose input is the very tensor that a
    convolution gave, each called once. The folded network must then give the same logits in
    float32, or nothing is folded. Returns whether anything was.
    """
    side = -(-max(LEAST_SIDE, model.spec.size_minimum) // model.spec.size_multiple)
    height, width = model.spec.window or (side * model.spec.size_multiple,) * 2
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((1, model.spec.in_chans, height, width), generator=generator).to(device)
    try:
        pairs, before = _pairs(model, images)
        if not pairs:
            return False
        modules = dict(model.named_modules())
        for first, second in pairs:
            norm: Any = modules[second]
            left = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else None
            model.set_submodule(first, fuse_conv_bn_eval(modules[first], norm))
            model.set_submodule(second, left or nn.Identity())
        after: Tensor = model(images, factor=1.0)
        if (after - before).abs().max() <= ROUNDING * before.abs().max():
            return True
    except (RuntimeError, AttributeError, TypeError, ValueError):
        pass  # a network that looks into its BatchNorms
    for first, second in pairs:
        model.set_submodule(first, modules[first])
        model.set_submodule(second, modules[second])
    return False


def _pairs(model: SegmentationModel, images: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of convolutions and of the BatchNorms that follow them, and the logits of `images`."""
    given: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id comes twice
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def after_convolution(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            given[id(output)] = (name, output)

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if arguments and id(arguments[0]) in given:
                pairs.append((given[id(arguments[0])][0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(after_convolution(name)))
        elif type(module) in BATCH_NORMS and getattr(module, "running_mean", None) is not None:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        logits: Tensor = model(images, factor=1.0)
    finally:
        for handle in handles:
            handle.remove()
    taken = [name for pair in pairs for name in pair]
    once = [
        pair for pair in pairs if all(calls[name] == taken.count(name) == 1 for name in pair)
    ]  # fmt: skip
    return once, logits


def _only_weighted(model: nn.Module) -> bool:
    """Whether convolutions and linear layers hold all parameters and buffers of a network."""
    return all(
        isinstance(module, WEIGHTED)
        for module in model.modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    )


@dataclass(frozen=True)
class Opened:
    """A network with the description of its model, and what is known of the model's training.

    `weights` names the weights, see `weights_id`. `model` is the model; None for an exported file.
    """

    network: Network
    spec: ModelSpec
    weights: str
    training: dict[str, Any] | None
    model: SegmentationModel | None


def open_network(
    model: str | Path | SegmentationModel,
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: torch.device | str | None = None,
    fold: bool = True,
    compile: bool = False,
) -> Opened:
    """The network of whatever names a trained model, or of an exported file.

    `backend`: torch, onnxruntime or openvino; auto is torch, and for a file what it was exported
    for. Only torch runs on another device than the CPU; `fold` and `compile` are those of
    `TorchNetwork`, other runtimes fold in any case. Raises InputError for what cannot be run,
    and RunError where a model cannot be prepared for a backend.
    """
    if backend not in ("auto", *BACKENDS):
        raise InputError(unknown("backend", str(backend), ("auto", *BACKENDS)))
    file = Path(model) if isinstance(model, str | Path) and is_exported(model) else None
    with_torch = file is None and backend in ("auto", "torch")
    if not with_torch and device is not None and torch.device(device).type != "cpu":
        raise InputError(f"{backend if file is None else file} runs on the CPU, not on {device}.")
    if compile and not with_torch:
        raise InputError("compile (--compile) goes with the backend torch only. Leave it out.")
    if file is not None:
        graph, found = open_exported(file, precision, backend)
        return Opened(graph, found.spec, found.weights, found.training, None)
    loaded = load_trained(model)
    network: Network
    if with_torch:
        place = default_device() if device is None else device
        network = TorchNetwork(
            loaded, precision=precision, device=place, fold=fold, compile=compile
        )
    else:
        network = runtime_network(loaded, backend, precision)
    weights = weights_id(loaded.net.state_dict())
    return Opened(network, loaded.spec, weights, known_training(loaded), loaded)
