"""The module that `zoo.create` returns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.models import smp_parts
from zoo.models.network import class_layers
from zoo.models.norms import SingleValues, has_batch_norm
from zoo.models.outputs import Auxiliary, MaskOutputs, Outputs, full_size, resized, same_size
from zoo.models.spec import ModelSpec, scaled_size, size_factor


class SegmentationModel(nn.Module):
    """A segmentation network with its description; takes images of any height and width.

    `net` is the network itself, whose state dict is what is stored; `spec` says what it expects and
    what its outputs mean; `provenance` says how it was trained (None for a fresh model), of the
    weights with the checksum `loaded`, None where they came from no folder.
    With `holds_frozen`, set by `zoo.freeze`, `train()` keeps frozen modules in evaluation mode.
    """

    loaded: int | None = None

    def __init__(self, net: nn.Module, spec: ModelSpec):
        super().__init__()
        self.net = net
        self.spec = spec
        self.provenance: dict[str, Any] | None = None
        self.holds_frozen = False

    def train(self, mode: bool = True) -> SegmentationModel:
        """Set the mode of every module, as torch does; returns the model.

        An encoder that SMP's `net.freeze_encoder()` froze stays in evaluation mode as a whole until
        `net.unfreeze_encoder()`: its BatchNorm statistics, dropout and stochastic depth.
        """
        nn.Module.train(self.net, False)  # SMP's own passes over a frozen encoder
        super().train(mode)
        if mode and self.holds_frozen:
            hold_frozen(self)
        return self

    def forward(self, images: torch.Tensor, factor: float | None = None) -> torch.Tensor:
        """Logits of every class for every pixel.

        `images`: float, B x in_chans x H x W, normalised (see `normalise`). Returns
        B x classes x H x W. Inside, the images are resized by `factor` (None: by what `spec` says
        for images of this size), then padded at the bottom and at the right to a size that the
        network takes, by repeating their last row and column; the logits are resized back.
        Both resizes are bilinear. A network of a fixed size (`spec.window`) uses sliding-window
        inference on larger images and averages the logits where windows overlap.
        """
        spec, window = self.spec, self.spec.window
        if factor is None:
            scaled = rescaled(images, spec.input_scale, spec.input_side)
        else:
            scaled = rescaled(images, factor)
        padded = self.padded(scaled)
        with self._normalising(padded):
            if window and padded.shape[-2:] != window:
                logits = self._windows(padded, window, self.net)
            else:
                logits = self.net(padded)
        found: torch.Tensor = cut_back(logits, padded, scaled, images)
        return found

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles in the place of this model."""
        return Scriptable(self)

    def training_outputs(
        self, images: torch.Tensor, features: Any = None
    ) -> Outputs | MaskOutputs | torch.Tensor:
        """What the losses take: logits as they are before the network's last upsampling.

        `features` is what `encode(images)` gave, where the encoder need not run again. `full_size`
        of the outputs is what `forward` returns for `images` with a factor of 1: crops have their
        size already. A plain tensor has that size; it comes from networks that do not end in
        upsampling, and from sliding windows. Networks of mask queries give `MaskOutputs`, and raise
        InputError for images that need windows.
        """
        padded = self.padded(images)
        with self._normalising(padded):
            return self._outputs(images, padded, features)

    def _outputs(
        self, images: torch.Tensor, padded: torch.Tensor, features: Any
    ) -> Outputs | MaskOutputs | torch.Tensor:
        """The training outputs of `images`, which are `padded` to what the network takes."""
        height, width = images.shape[-2:]
        window = self.spec.window
        if not window or padded.shape[-2:] == window:
            outputs = self._net_outputs(padded, features)
            if isinstance(outputs, torch.Tensor):
                return outputs[..., :height, :width]
            return outputs._replace(crop=(height, width))

        # logits of full size from sliding windows, beside them those of the auxiliary heads
        factors: list[float] = []

        def stacked(part: torch.Tensor) -> torch.Tensor:
            outputs = self._net_outputs(part)
            if isinstance(outputs, MaskOutputs):
                raise InputError(
                    f"{self.spec.name} learns from images of {window[0]} x {window[1]} pixels at "
                    f"most, got {height} x {width}. Set crop to {min(window)} or less, or build it "
                    "with img_size= as large as the crop."
                )
            if isinstance(outputs, torch.Tensor):
                return outputs
            factors[:] = [auxiliary.factor for auxiliary in outputs.auxiliary]
            others = [resized(a.logits, outputs.size) for a in outputs.auxiliary]
            return torch.cat([full_size(outputs), *others], dim=1)

        planes: tuple[torch.Tensor, ...] = torch.split(
            self._windows(padded, window, stacked), len(self.spec.classes), dim=1
        )
        logits, *others = planes
        if not others:
            return logits[..., :height, :width]
        auxiliary = tuple(Auxiliary(*pair) for pair in zip(others, factors, strict=True))
        size = (padded.shape[-2], padded.shape[-1])
        return Outputs(logits, size, (height, width), auxiliary)

    def encode(self, images: torch.Tensor) -> Any:
        """What the encoder gives for `images`, for `training_outputs`."""
        padded = self.padded(images)
        with self._normalising(padded):
            return self.net.get_submodule("encoder")(padded)

    def scoring_layers(self) -> list[nn.Module]:
        """The layers that give the logits of the classes; empty where the network has none."""
        offered = getattr(self.net, "scoring_layers", None)
        if offered is not None:
            layers: list[nn.Module] = offered()
            return layers
        head = getattr(self.net, "segmentation_head", None)
        return [] if head is None else class_layers(head, len(self.spec.classes))

    def on_step(self, progress: float) -> None:
        """Tell the network before a training step how far training is, in [0, 1]."""
        offered = getattr(self.net, "on_step", None)
        if offered is not None:
            offered(progress)

    def _net_outputs(
        self, images: torch.Tensor, features: Any = None
    ) -> Outputs | MaskOutputs | torch.Tensor:
        """The training outputs of images that have a size which the network takes."""
        if not hasattr(self.net, "training_outputs"):
            return smp_parts.training_outputs(self.net, images, features)
        outputs: Outputs | MaskOutputs | torch.Tensor
        outputs = self.net.training_outputs(images, features)  # type: ignore[operator]
        return outputs

    def padded(self, images: torch.Tensor) -> torch.Tensor:
        """`images` padded to a size that the network takes: last row and column are repeated."""
        padded: torch.Tensor = padded_to(images, *self.input_grid())
        return padded

    def input_grid(self) -> tuple[int, tuple[int, int]]:
        """What both sides are a multiple of, and the least height and width, in pixels."""
        spec, window = self.spec, self.spec.window
        return (1, window) if window else (spec.size_multiple, (spec.size_minimum,) * 2)

    def _normalising(self, images: torch.Tensor) -> contextlib.AbstractContextManager[object]:
        """A context in which the network also trains on one image.

        Where an image is so small that the encoder's last map holds a single value, the user should
        see torch's error.
        """
        if not self.net.training or len(images) > 1:
            return contextlib.nullcontext()
        encoder = getattr(self.net, "encoder", None)
        small = max(images.shape[-2:]) <= getattr(encoder, "output_stride", 0)
        if small and encoder is not None and has_batch_norm(encoder):
            return contextlib.nullcontext()
        return SingleValues()

    def _windows(
        self,
        images: torch.Tensor,
        window: tuple[int, int],
        net: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The mean of the outputs of `net` over overlapping windows, at full size."""
        height, width = images.shape[-2:]
        window_height, window_width = window
        total: torch.Tensor | None = None
        count = images.new_zeros((height, width))
        for top in window_starts(height, window_height):
            for left in window_starts(width, window_width):
                place = (..., slice(top, top + window_height), slice(left, left + window_width))
                found = resized(net(images[place]), window)
                if total is None:
                    total = images.new_zeros((*found.shape[:2], height, width))
                total[place] += found
                count[place] += 1
        assert total is not None
        return total / count


def hold_frozen(model: nn.Module) -> None:
    """Evaluation mode for what is frozen in `model`, training mode for the rest.

    A module whose parameters are all frozen goes to evaluation mode with everything inside it: its
    BatchNorm statistics are frozen, its dropout and stochastic depth are off. A module without
    parameters follows the next module that has some (a ViT's dropout on the
    position embedding follows the first block), the last ones follow the module before them.
    """
    following: bool | None = None
    waiting: list[nn.Module] = []
    for module in _outermost(model):
        parameters = list(module.parameters())
        if not parameters:
            waiting.append(module)
            continue
        following = not any(parameter.requires_grad for parameter in parameters)
        for other in [*waiting, module]:
            nn.Module.train(other, not following)  # SMP's own passes over a frozen encoder
        waiting.clear()
    for module in waiting:
        module.train(not following)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules that are frozen as a whole, learn as a whole, or hold no parameter."""
    for child in module.children():
        states = {parameter.requires_grad for parameter in child.parameters()}
        if len(states) == 2:
            yield from _outermost(child)
        else:
            yield child


class Scriptable(nn.Module):
    """A `SegmentationModel` for TorchScript: the same inference from the same weights."""

    def __init__(self, model: SegmentationModel):
        super().__init__()
        try:
            self.net = torch.jit.script(model.net)
        except Exception as error:  # TorchScript raises whatever it meets
            reason = str(error).strip().partition("\n")[0].rstrip(":")
            raise InputError(
                f"TorchScript cannot compile {model.spec.name} ({reason}). Use torch.export or "
                "torch.jit.trace, which take every model."
            ) from error
        self.classes = len(model.spec.classes)
        self.input_side, self.input_scale = model.spec.input_side, model.spec.input_scale
        self.window = model.spec.window or (0, 0)
        self.multiple, self.minimum = model.input_grid()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `SegmentationModel.forward`."""
        scaled = rescaled(images, self.input_scale, self.input_side)
        padded = padded_to(scaled, self.multiple, self.minimum)
        height, width = padded.shape[-2], padded.shape[-1]
        window = self.window
        if window[0] == 0 or (height == window[0] and width == window[1]):
            logits: torch.Tensor = cut_back(self.net(padded), padded, scaled, images)
            return logits
        total = padded.new_zeros([padded.shape[0], self.classes, height, width])
        count = padded.new_zeros([height, width])
        for top in window_starts(height, window[0]):
            for left in window_starts(width, window[1]):
                bottom, right = top + window[0], left + window[1]
                found = resized(self.net(padded[..., top:bottom, left:right]), window)
                total[..., top:bottom, left:right] += found
                count[..., top:bottom, left:right] += 1
        mean: torch.Tensor = cut_back(total / count, padded, scaled, images)
        return mean


def window_starts(length: int, side: int) -> list[int]:
    """First pixels of the fewest windows of `side` pixels that cover `length`, spread evenly."""
    count = (length + side - 1) // side
    gaps = max(1, count - 1)
    return [int(round(index * (length - side) / gaps)) for index in range(count)]  # noqa: RUF046


def padding(size: int, multiple: int, minimum: int) -> int:
    """Pixels to add to `size` to reach the next multiple that is not below `minimum`."""
    needed = max(size, minimum)
    return (needed + multiple - 1) // multiple * multiple - size


def normalise(images: torch.Tensor, spec: ModelSpec, device: torch.device | str) -> torch.Tensor:
    """Turn uint8 pixels into what the encoder was trained on: (pixel / 255 - mean) / std.

    `images`: uint8, B x in_chans x H x W. Returns float32 of the same shape on `device`, in
    channels-last memory format.
    """
    images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    mean = torch.tensor(spec.mean, device=device).mul_(255).view(1, -1, 1, 1)
    scale = torch.tensor(spec.std, device=device).mul_(255).reciprocal_().view(1, -1, 1, 1)
    return images.float().sub_(mean).mul_(scale)


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def rescaled(images: torch.Tensor, scale: float, side: int | None = None) -> torch.Tensor:
    """Float `images`, B x C x H x W, with both sides times `scale`: bilinear, antialiased.

    With `side` the shorter side is that many pixels before.
    """
    if side is None and scale == 1.0:
        return _another(images)
    size = (images.shape[-2], images.shape[-1])
    factor = size_factor(size[0], size[1], side, scale)
    new = scaled_size(size, factor)
    if same_size(new, size):
        return _another(images)
    antialias = factor < 1.0
    return functional.interpolate(images, [new[0], new[1]], mode="bilinear", antialias=antialias)


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def padded_to(images: torch.Tensor, multiple: int, minimum: tuple[int, int]) -> torch.Tensor:
    """`images`, B x C x H x W, with both sides padded to a multiple and a minimum, in pixels.

    The last row and column are repeated.
    """
    height = padding(images.shape[-2], multiple, minimum[0])
    width = padding(images.shape[-1], multiple, minimum[1])
    if same_size((height, width), (0, 0)):
        return _another(images)
    return functional.pad(images, [0, width, 0, height], mode="replicate")


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def cut_back(
    logits: torch.Tensor, padded: torch.Tensor, scaled: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """`logits` of padded images without the padding, then resized to the size of `images`.

    Options of SMP's classes (`upsampling`, `encoder_depth`) may leave them smaller than `padded`;
    they are resized to it first.
    """
    size = (padded.shape[-2], padded.shape[-1])
    if not same_size((logits.shape[-2], logits.shape[-1]), size):
        logits = resized(logits, size)
    logits = logits[..., : scaled.shape[-2], : scaled.shape[-1]]
    if same_size((scaled.shape[-2], scaled.shape[-1]), (images.shape[-2], images.shape[-1])):
        return logits
    return resized(logits, (images.shape[-2], images.shape[-1]))


def _another(images: torch.Tensor) -> torch.Tensor:
    """The same pixels; in a trace another tensor, as a trace takes equal ones for one."""
    return images[:] if torch.jit.is_scripting() else images  # type: ignore[attr-defined]
