"""How a model is placed on a device: number formats, memory layout, what is recomputed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from zoo.common.errors import InputError, join_problems, nearest, shortened
from zoo.training.engine.features import map_tensors

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe
    from zoo.runtime.processes import Ranks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


def placed(model: SegmentationModel, recipe: Recipe, ranks: Ranks) -> SegmentationModel:
    """The model on its device, set up as the recipe says; the names of its weights stay.

    Raises InputError for `fp32_modules` that match nothing and for an encoder that cannot recompute
    its activations.
    """
    keep_float32(model, recipe.fp32_modules)
    if ranks.device.type == "cpu":
        speed_up_cpu(model)
    if recipe.activation_checkpointing:
        checkpoint_activations(model)
    if ranks.world > 1 and ranks.device.type == "cuda":
        model.net = convert_sync_batchnorm(model.net)
    channels_last = recipe.channels_last and not ranks.sharded  # FSDP needs contiguous weights
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(ranks.device).to(memory_format=layout)


def keep_float32(model: SegmentationModel, patterns: Sequence[str]) -> list[str]:
    """Run the modules of `model.net` whose names match a shell pattern in float32, always.

    Returns their names. Inside them autocast is off and floating inputs arrive as float32. Raises
    InputError for a pattern that matches nothing.
    """
    names = [name for name, _ in model.net.named_modules() if name]
    matched = {p: [name for name in names if fnmatchcase(name, p)] for p in patterns}
    problems = []
    for pattern in (p for p, found in matched.items() if not found):
        near = nearest(pattern.replace("*", ""), names, 5)
        near = near or [name for name in names if "." not in name]
        problems.append(f"{pattern!r} matches no module; near it: {shortened(near, 5)}")
    if problems:
        raise InputError(join_problems("fp32_modules has problems:", problems))
    chosen = [name for name in names if any(name in found for found in matched.values())]
    for name in chosen:
        module, hooks = model.net.get_submodule(name), _Float32()
        module.register_forward_pre_hook(hooks.before, with_kwargs=True)
        module.register_forward_hook(hooks.after, always_call=True)
    return chosen


def speed_up_cpu(model: SegmentationModel) -> None:
    """Make `model` train faster on a CPU; weights, names and scores do not change.

    Depthwise convolutions other than 3 x 3 with stride and dilation 1 have no fast backward pass in
    bfloat16 (torch 2.15), so they compute in float32 in training. The C library would return the
    memory of large tensors to the system, which zeroes every new page; it keeps that memory.
    """
    for module in model.net.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        usual = (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        depthwise = module.groups == module.in_channels > 1
        if depthwise and not usual and module.kernel_size != (1, 1):
            hooks = _Float32InTraining()
            module.register_forward_pre_hook(hooks.before, with_kwargs=True)
            module.register_forward_hook(hooks.after, always_call=True)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Set glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD to the largest it takes; else nothing."""
    setter = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if setter is not None:
        setter(_M_MMAP_THRESHOLD, 2**25)
        setter(_M_TRIM_THRESHOLD, 2**31 - 1)


class _Float32:
    """The hooks of one module; a copy of the module takes a copy of them."""

    def __init__(self) -> None:
        self._entered: list[torch.autocast] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Turn autocast off and make every floating input float32."""
        device = next((p.device.type for p in module.parameters()), None)
        kind = device or next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        context = torch.autocast(kind, enabled=False)
        context.__enter__()
        self._entered.append(context)
        return map_tensors(lambda x: x.float() if x.is_floating_point() else x, (args, kwargs))

    def after(self, *_: Any) -> None:
        """Turn autocast on again as it was."""
        self._entered.pop().__exit__(None, None, None)


class _Float32InTraining(_Float32):
    """The hooks of a module that autocast would run in bfloat16, and whose output stays that."""

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Turn autocast off and make every floating input float32, where the module trains."""
        lowered = torch.is_autocast_enabled("cpu") and module.training
        return super().before(module, args, kwargs) if lowered else None

    def after(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Turn autocast on again and lower the output."""
        if not self._entered:
            return None
        super().after()
        return output.to(torch.get_autocast_dtype("cpu")) if isinstance(output, Tensor) else None


def checkpoint_activations(model: SegmentationModel) -> None:
    """Recompute the encoder's activations in the backward pass instead of keeping them.

    Raises InputError where the encoder cannot.
    """
    encoder = getattr(model.net, "encoder", None)
    for part in (getattr(encoder, "model", None), encoder):
        switch = getattr(part, "set_grad_checkpointing", None)
        if switch is not None:
            with contextlib.suppress(AssertionError, NotImplementedError):  # as timm refuses
                switch(True)
                return
    raise InputError(
        f"{model.spec.encoder} cannot recompute its activations. Leave activation_checkpointing "
        "out; micro_batch and precision=bf16 also lower the memory that is needed."
    )
