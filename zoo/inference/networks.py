"""What runs the network of a model: torch on one device, or the runtime of an exported file."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from zoo.models.segmentation import SegmentationModel, normalise, rescaled
from zoo.runtime.precision import autocast, resolve_precision


class Network(Protocol):
    """What runs the network of a model on one device: torch, ONNX Runtime or OpenVINO.

    `precision` is fp32, bf16, fp16 or int8; `folded` says whether BatchNorm is part of the
    convolutions before it; `size` is the only height and width in pixels that the network takes,
    None where it takes any.
    """

    backend: str
    precision: str
    folded: bool
    device: torch.device
    size: tuple[int, int] | None

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
    size = None

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
