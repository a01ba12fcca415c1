"""The scores of an exported file and of its model on one split."""

from __future__ import annotations

from zoo.common.console import progress_bar
from zoo.common.errors import InputError, RunError
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import data_hash
from zoo.data.loading.loader import EvalLoader
from zoo.evaluation.counts import Confusion
from zoo.inference.exported import GraphNetwork, SplitScores
from zoo.inference.networks import Network, TorchNetwork
from zoo.inference.tiling import joined, plan_windows, predict_tiles
from zoo.models.segmentation import SegmentationModel

MOST_DIFFERENT, MOST_LOST = 0.001, 0.01
"""How much mIoU, a fraction, a file of fp32 may differ from its model, and one of int8 may lose."""


def split_scores(
    model: SegmentationModel, network: GraphNetwork, dataset: Dataset, split: str
) -> SplitScores:
    """mIoU of a model in fp32 on the CPU and of its exported file on a split.

    Both see the same windows. Raises InputError where every pixel is ignored.
    """
    runners: tuple[Network, Network] = (
        TorchNetwork(model, precision="fp32", device="cpu", fold=False),
        network,
    )
    counts = Confusion(dataset.classes), Confusion(dataset.classes)
    loader = EvalLoader(dataset, split)
    with progress_bar() as bar:
        task = bar.add_task("compare", total=loader.images)
        for indices, images, masks in loader:
            size = (images.shape[-2], images.shape[-1])
            windows = plan_windows(model.spec, *size, size=network.size)
            for runner, confusion in zip(runners, counts, strict=True):
                tiles = predict_tiles(runner, model.spec, images, windows)
                confusion.add(masks, joined(tiles, (len(images), *size)))
            bar.advance(task, len(indices))
    if counts[0].pixels == 0:
        raise InputError(f"{dataset.name}, split {split}: every pixel is ignored.")
    return SplitScores(
        data=dataset.name,
        data_hash=data_hash(dataset, split),
        split=split,
        images=loader.images,
        miou=float(counts[1].miou),
        torch_miou=float(counts[0].miou),
    )


def check_scores(scores: SplitScores, precision: str, what: str) -> None:
    """Raise RunError where a file scores otherwise than its model; `what` names it.

    `precision` is that of the file: fp32, or int8, which may score higher.
    """
    lost = scores.torch_miou - scores.miou
    if lost > MOST_LOST if precision == "int8" else abs(lost) > MOST_DIFFERENT:
        raise RunError(
            f"{what} has {100 * scores.miou:.2f} % mIoU on {scores.data}, split {scores.split}, "
            f"the model {100 * scores.torch_miou:.2f} %, so it is not kept."
        )
