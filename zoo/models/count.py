"""Parameters and multiply-accumulates of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.models.spec import ModelSpec


def params_m(model: SegmentationModel) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def gmacs(spec: ModelSpec, height: int, width: int) -> float | None:
    """Multiply-accumulates of one image of this size in 1e9, by torch's counter.

    Counted on the meta device, so nothing is computed; None where a network cannot run there.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from zoo.models.build import build
    from zoo.models.meta import without_memory

    try:
        with without_memory():
            model = build(spec).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, spec.in_chans, height, width, device="meta"))
    except (RuntimeError, NotImplementedError):
        return None
    return float(counter.get_total_flops()) / 2e9
