"""Whether an exported file gives what the model gives."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zoo.common.errors import RunError, join_problems
from zoo.inference.exported import GraphNetwork, Parity
from zoo.inference.tiling import best_class
from zoo.models.outputs import resized
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.models.spec import ModelSpec

LEAST_COSINE, LEAST_EQUAL = 0.999, 0.999
"""The cosine of all logits and the fraction of pixels of equal class that fp32 files must reach."""


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
    return [(2, height, width + multiple), (1, max(1, multiple * 2 - 3), multiple + 1), *odd]


def example_images(spec: ModelSpec, batch: int, height: int, width: int) -> Tensor:
    """Pixels with large shapes and fine grain, uint8 B x in_chans x H x W, the same every time."""
    rng = np.random.default_rng(height * width + batch)
    shapes = torch.from_numpy(rng.random((batch, spec.in_chans, 5, 7), dtype=np.float32))
    grain = torch.from_numpy(rng.normal(0, 20, (batch, spec.in_chans, height, width)))
    return (resized(shapes, (height, width)) * 255 + grain).round().clamp(0, 255).to(torch.uint8)


def compare(
    model: SegmentationModel, network: GraphNetwork, sizes: Sequence[tuple[int, int, int]]
) -> list[Parity]:
    """The parity of a network with the torch model, in fp32 on the CPU, at each of the sizes."""
    model = copy.deepcopy(model).cpu().eval()
    found = []
    for batch, height, width in sizes:
        images = example_images(model.spec, batch, height, width)
        with torch.inference_mode():
            wanted = model(normalise(images, model.spec, "cpu"), factor=1.0)
        got = network(images, 1.0)
        cosine = difference = None
        if not network.ids_only:
            first, second = wanted.double().flatten(), got.double().flatten()
            cosine = torch.nn.functional.cosine_similarity(first, second, dim=0).item()
            difference = (first - second).abs().max().item()
        equal = best_class(wanted, (height, width)) == best_class(got, (height, width))
        found.append(
            Parity(
                batch=batch,
                height=height,
                width=width,
                seen=(height, width) == sizes[0][1:],
                cosine=cosine,
                max_difference=difference,
                equal=equal.double().mean().item(),
            )
        )
    return found


def checked(model: SegmentationModel, network: GraphNetwork, what: str) -> list[Parity]:
    """The parity of a network of fp32 with the model, at sizes seen at export and others.

    Raises RunError where they differ; `what` names the network.
    """
    found = compare(model, network, check_sizes(model.spec, network.size))
    wrong = []
    for one in found:
        size = f"{one.height}x{one.width}"
        if one.cosine is not None and not one.cosine >= LEAST_COSINE:
            wrong.append(
                f"{size}: the cosine of the logits is {one.cosine:.4f}, below {LEAST_COSINE}"
            )
        if not one.equal >= LEAST_EQUAL:
            wrong.append(
                f"{size}: {100 * one.equal:.2f} % of the pixels have the same class, below "
                f"{100 * LEAST_EQUAL:g} %"
            )
    if wrong:
        header = f"{what} of {model.spec.name} does not give what the model gives, so it is not "
        raise RunError(join_problems(f"{header}kept:", wrong))
    return found
