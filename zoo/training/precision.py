"""Number formats of a run: the accelerator, and modules that stay in float32."""

from __future__ import annotations

import contextlib
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

from zoo.errors import InputError, join_problems, nearest, shortened

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel


def make_accelerator(
    precision: str, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """An accelerator for fp32, bf16 or fp16, whatever an earlier run in this process used.

    `track` names trackers, which write into `folder` where they need one.
    """
    AcceleratorState._reset_state()  # the library keeps the first precision of a process for good
    settings = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # `zoo.training.sharding` splits weights
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
