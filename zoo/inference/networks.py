"""What runs the network of a model: torch on one device, or the runtime of an exported file."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.common.errors import InputError, unknown
from zoo.creation.create import load_trained
from zoo.creation.locate import is_exported
from zoo.hub.folder import known_training
from zoo.inference.exported import open_exported
from zoo.inference.runtimes import BACKENDS, runtime_network
from zoo.models.build import weights_id
from zoo.models.segmentation import SegmentationModel, normalise, rescaled
from zoo.models.spec import ModelSpec
from zoo.runtime.precision import autocast, resolve_precision
from zoo.runtime.processes import default_device


class Network(Protocol):
    """What runs the network of a model on one device: torch, ONNX Runtime or OpenVINO.

    `precision` is fp32, bf16, fp16 or int8; `folded` says whether BatchNorm is part of the
    convolutions before it; `size` is the only height and width in pixels that the network takes,
    None where it takes any. With `ids_only` the logits tell nothing but the best class.
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
    """A model as torch runs it, in evaluation mode.

    The model itself stays as it is: a copy runs, which shares its tensors where device and type are
    the same. `precision`: fp32, bf16, fp16, or auto for the fastest that the device has.
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
    ):
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, self.device)
        self.folded = False
        self.spec = model.spec
        self.model = copy_to(model, self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, factor: float) -> Tensor:
        """See `Network`."""
        inputs = rescaled(normalise(images, self.spec, self.device), factor)
        with autocast(self.precision, self.device):
            logits: Tensor = self.model(inputs, factor=1.0)
        return logits


def copy_to(model: SegmentationModel, device: torch.device) -> SegmentationModel:
    """A copy of a model on `device` that shares every tensor which is there already."""
    placed: dict[int, Tensor] = {}
    for parameter in model.parameters():
        placed[id(parameter)] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
    for buffer in model.buffers():
        placed[id(buffer)] = buffer.detach().to(device)
    return copy.deepcopy(model, placed)


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
) -> Opened:
    """The network of whatever names a trained model, or of an exported file.

    `backend`: torch, onnxruntime or openvino; auto is torch, and for a file what it was exported
    for. Only torch runs on another device than the CPU. Raises InputError for what cannot be run,
    and RunError where a model cannot be prepared for a backend.
    """
    if backend not in ("auto", *BACKENDS):
        raise InputError(unknown("backend", str(backend), ("auto", *BACKENDS)))
    file = Path(model) if isinstance(model, str | Path) and is_exported(model) else None
    with_torch = file is None and backend in ("auto", "torch")
    if not with_torch and device is not None and torch.device(device).type != "cpu":
        raise InputError(f"{backend if file is None else file} runs on the CPU, not on {device}.")
    if file is not None:
        graph, found = open_exported(file, precision, backend)
        return Opened(graph, found.spec, found.weights, found.training, None)
    loaded = load_trained(model)
    network: Network
    if with_torch:
        place = default_device() if device is None else device
        network = TorchNetwork(loaded, precision=precision, device=place)
    else:
        network = runtime_network(loaded, backend, precision)
    weights = weights_id(loaded.net.state_dict())
    return Opened(network, loaded.spec, weights, known_training(loaded), loaded)
