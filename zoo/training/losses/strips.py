"""Logits at full resolution, a strip of rows at a time, so that all of them never exist at once.

Only the small result of a strip is kept; the backward pass computes the strip again (activation
checkpointing, arXiv 1604.06174).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo.models.outputs import Outputs, full_size

WHOLE = 2**24
"""Up to this many values (B x K x H x W) there is one strip, and nothing is computed twice."""
STRIP = 2**21
"""The approximate number of values of a strip if there are several."""

Sums = dict[str, torch.Tensor]
Part = Callable[[torch.Tensor, torch.Tensor], Sums]


def full_size_values(outputs: Outputs) -> int:
    """Number of values of the full-size logits."""
    height, width = outputs.crop
    return outputs.logits.shape[0] * outputs.logits.shape[1] * height * width


def in_one_piece(outputs: Outputs) -> bool:
    """Whether the logits are few enough for a single strip."""
    return full_size_values(outputs) <= WHOLE


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """`values` in float32, or in float64 if they are that already."""
    return values if values.dtype == torch.float64 else values.float()


def in_strips(part: Part, outputs: Outputs, target: torch.Tensor) -> Sums:
    """`part(logits, target)` over the full-size logits (float32 or float64) and the target.

    What `part` returns has either B x h x W values, for the pixels it was given, or K values, sums
    over them. Maps are concatenated row by row, sums are added up.
    """
    if in_one_piece(outputs):
        return part(full_size(outputs._replace(logits=at_least_float32(outputs.logits))), target)
    height = outputs.crop[0]
    rows = max(1, STRIP // (full_size_values(outputs) // height))
    strips = _split if outputs.logits.shape[-2:] == outputs.size else _upsampled
    found = [
        recomputed(_compute, part, strip, lines)
        for strip, lines in zip(strips(outputs, rows), target.split(rows, dim=-2), strict=True)
    ]
    return {name: _joined([one[name] for one in found]) for name in found[0]}


def recomputed(compute: Callable[..., Any], *inputs: Any) -> Any:
    """`compute(*inputs)`; the backward pass computes it again and keeps only the inputs."""
    if not torch.is_grad_enabled():
        return compute(*inputs)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)


def _compute(part: Part, strip: Callable[[], torch.Tensor], target: torch.Tensor) -> Sums:
    height, width = target.shape[-2:]
    return part(strip()[..., :height, :width], target)


def _joined(found: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(found, dim=1) if found[0].ndim == 3 else torch.stack(found).sum(dim=0)


def _split(outputs: Outputs, rows: int) -> list[Callable[[], torch.Tensor]]:
    """Strips of logits that already have full size."""
    strips = outputs.logits.split(rows, dim=2)
    return [
        functools.partial(at_least_float32, strip)
        for strip in strips[: -(-outputs.crop[0] // rows)]
    ]


def _upsampled(outputs: Outputs, rows: int) -> list[Callable[[], torch.Tensor]]:
    """Strips of smaller logits, each upsampled from the few lines that it needs.

    The logits are unbound into lines once, so that their gradient is assembled once.
    """
    lines = outputs.logits.unbind(dim=2)
    places = _places(outputs.size[0], len(lines), outputs.align_corners)[: outputs.crop[0]]
    strips: list[Callable[[], torch.Tensor]] = []
    for here in places.split(rows):
        first, last = int(here[0]), min(int(here[-1]) + 1, len(lines) - 1)
        needed = lines[first : last + 1]
        strips.append(functools.partial(_interpolated, needed, here - first, outputs))
    return strips


def _places(size: int, lines: int, align_corners: bool) -> torch.Tensor:
    """Where each of `size` rows lies among `lines` rows, as torch's interpolation has it."""
    rows = torch.arange(size, dtype=torch.float32)
    if align_corners:
        return rows * ((lines - 1) / (size - 1) if size > 1 else 0.0)
    return ((rows + 0.5) * (lines / size) - 0.5).clamp(min=0)


def _interpolated(
    lines: tuple[torch.Tensor, ...], places: torch.Tensor, outputs: Outputs
) -> torch.Tensor:
    """The rows at `places` between `lines` (B x K x w each): B x K x len(places) x full width."""
    block = at_least_float32(torch.stack(lines, dim=2))
    above = places.long().clamp(max=len(lines) - 1)
    below = (above + 1).clamp(max=len(lines) - 1)
    fraction = (places - above).to(block.dtype).unsqueeze(1).to(block.device)
    above, below = above.to(block.device), below.to(block.device)
    rows = torch.lerp(block.index_select(2, above), block.index_select(2, below), fraction)
    size = (len(places), outputs.size[1])
    align = outputs.align_corners
    return functional.interpolate(rows, size, mode="bilinear", align_corners=align)
