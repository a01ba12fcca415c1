"""Whether an exported file gives what the model gives."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from zoo.common.errors import RunError, join_problems
from zoo.inference.exported import GraphNetwork, Parity
from zoo.inference.graphs import recorded_size
from zoo.inference.tiling import best_class
from zoo.models.outputs import resized
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.models.spec import ModelSpec

LEAST = {"fp32": (0.999, 0.999), "int8": (0.98, 0.95)}
"""The cosine of all logits and the fraction of pixels of equal class that files must reach."""


def check_sizes(spec: ModelSpec, size: tuple[int, int] | None) -> list[tuple[int, int, int]]:
    """Batch, height and width of the images that a graph is compared on, the size it was recorded
    at first.

    A graph of any size gets three others: smaller than the network's own multiple, and two whose
    sides are no multiples of it, flat and tall.
    """
    if size is not None:
        return [(2, *size), (1, *size)]
    height, width = spec.example_size()
    multiple = spec.size_multiple
    odd = [(1, height - 1, width + 5 + 2 * multiple), (3, height + 7 + multiple, width // 2 - 3)]
    return [(2, *recorded_size(spec, None)), (1, max(1, multiple * 2 - 3), multiple + 1), *odd]


def example_images(spec: ModelSpec, batch: int, height: int, width: int) -> Tensor:
    """Pixels with large shapes and fine grain, uint8 B x in_chans x H x W, the same every time."""
    rng = np.random.default_rng(height * width + batch)
    shapes = torch.from_numpy(rng.random((batch, spec.in_chans, 5, 7), dtype=np.float32))
    grain = torch.from_numpy(rng.normal(0, 20, (batch, spec.in_chans, height, width)))
    return (resized(shapes, (height, width)) * 255 + grain).round().clamp(0, 255).to(torch.uint8)


def compare(
    model: SegmentationModel, network: GraphNetwork, groups: Iterable[Sequence[Tensor]]
) -> list[Parity]:
    """The parity of a network with the torch model, in fp32 on the CPU, on each of the groups.

    A group is some batches, uint8 B x C x H x W, of images of one size.
    """
    model = copy.deepcopy(model).cpu().eval()
    return [_parity(model, network, group) for group in groups]


def _parity(model: SegmentationModel, network: GraphNetwork, group: Sequence[Tensor]) -> Parity:
    size = (group[0].shape[-2], group[0].shape[-1])
    products = np.zeros(3)  # wanted x got, and each with itself
    difference, equal, pixels = 0.0, 0, 0
    for images in group:
        with torch.inference_mode():
            wanted = model(normalise(images, model.spec, "cpu"), factor=1.0)
        got = network(images, 1.0)
        same = best_class(wanted, size) == best_class(got, size)
        equal, pixels = equal + int(same.sum()), pixels + same.numel()
        if not network.ids_only:
            first, second = wanted.double().flatten(), got.double().flatten()
            products += [float(a @ b) for a, b in ((first, second), (first,) * 2, (second,) * 2)]
            difference = max(difference, (first - second).abs().max().item())
    logits = not network.ids_only
    return Parity(
        batch=sum(len(images) for images in group),
        height=size[0],
        width=size[1],
        seen=size == recorded_size(model.spec, network.size),
        cosine=float(products[0] / np.sqrt(products[1] * products[2])) if logits else None,
        max_difference=difference if logits else None,
        equal=equal / pixels,
    )


def checked(
    model: SegmentationModel,
    network: GraphNetwork,
    what: str,
    groups: Sequence[Sequence[Tensor]] | None = None,
) -> list[Parity]:
    """The parity of a network with the model, as good as files of its precision must be.

    `groups` are the images, see `compare`; by default patterns at sizes seen at export and others.
    Raises RunError where they differ; `what` names the network.
    """
    if groups is None:
        sizes = check_sizes(model.spec, network.size)
        groups = [[example_images(model.spec, *size)] for size in sizes]
    found = compare(model, network, groups)
    least_cosine, least_equal = LEAST[network.precision]
    wrong = []
    for one in found:
        size = f"{one.height}x{one.width}"
        if one.cosine is not None and not one.cosine >= least_cosine:
            wrong.append(
                f"{size}: the cosine of the logits is {one.cosine:.4f}, below {least_cosine}"
            )
        if not one.equal >= least_equal:
            wrong.append(
                f"{size}: {100 * one.equal:.2f} % of the pixels have the same class, below "
                f"{100 * least_equal:g} %"
            )
    if wrong:
        header = f"{what} of {model.spec.name} does not give what the model gives, so it is not "
        raise RunError(join_problems(f"{header}kept:", wrong))
    return found
