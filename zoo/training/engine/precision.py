"""Number formats and memory of a run: the accelerator, and modules that stay in float32."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    patch_environment,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zoo.common.errors import InputError, join_problems, nearest, shortened

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


def make_accelerator(
    precision: str, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """An accelerator for fp32, bf16 or fp16, whatever an earlier run in this process used.

    `track` names trackers, which write into `folder` where they need one.
    """
    AcceleratorState._reset_state()  # the library keeps the first precision of a process for good
    settings = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
    with patch_environment(
        ACCELERATE_USE_FSDP="false"
    ):  # `zoo.training.engine.sharding` splits weights
        return Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=list(track) or None,
            project_config=ProjectConfiguration(
                logging_dir=None if folder is None else str(folder)
            ),
            kwargs_handlers=[settings],
        )


def keep_float32(model: SegmentationModel, patterns: Sequence[str]) -> list[str]:
    """Run the modules of `model.net` whose names match a shell pattern in float32, always.

    Returns their names. Inside them autocast is off and floating inputs arrive as float32. Raises
    InputError for a pattern that matches nothing.
    """
    names = [name for name, _ in model.net.named_modules() if name]
    matched = {p: [name for name in names if fnmatchcase(name, p)] for p in patterns}
    problems = [
        f"{pattern!r} matches no module; near it: {shortened(_near(pattern, names), 5)}"
        for pattern, found in matched.items()
        if not found
    ]
    if problems:
        raise InputError(join_problems("fp32_modules has problems:", problems))
    chosen = [name for name in names if any(name in found for found in matched.values())]
    for name in chosen:
        module, hooks = model.net.get_submodule(name), _Float32()
        module.register_forward_pre_hook(hooks.before, with_kwargs=True)
        module.register_forward_hook(hooks.after, always_call=True)
    return chosen


def speed_up_cpu(model: SegmentationModel) -> None:
    """Let `model` train faster on a CPU; its weights, their names and its scores do not change.

    Depthwise convolutions other than 3 x 3 with stride and dilation 1 have no fast backward pass in
    bfloat16 (torch 2.15): while they train they compute in float32. And the C library gives the
    memory of large tensors back to the system, which fills new pages with zeros for the next ones:
    it now keeps that memory.
    """
    for module in model.net.modules():
        if isinstance(module, nn.Conv2d) and _is_slow_in_bfloat16(module):
            hooks = _Float32InTraining()
            module.register_forward_pre_hook(hooks.before, with_kwargs=True)
            module.register_forward_hook(hooks.after, always_call=True)
    _keep_freed_memory()


def _is_slow_in_bfloat16(module: nn.Conv2d) -> bool:
    usual = (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
    return module.groups == module.in_channels > 1 and not usual and module.kernel_size != (1, 1)


def _keep_freed_memory() -> None:
    """Set glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD to the largest it takes; else nothing."""
    setter = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if setter is not None:
        setter(_M_MMAP_THRESHOLD, 2**25)
        setter(_M_TRIM_THRESHOLD, 2**31 - 1)


def _near(pattern: str, names: list[str]) -> list[str]:
    top = [name for name in names if "." not in name]
    return nearest(pattern.replace("*", ""), names, 5) or top


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
        return tree_map(_as_float32, (args, kwargs))

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


def _as_float32(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if floating else value


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
