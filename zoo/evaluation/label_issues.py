"""Labels that a model disputes: confident learning over the pixels of splits that it did not see.

What is counted follows cleanlab. A class's threshold is the mean probability that the model gives
it where it is the label; a pixel is disputed where the most probable class is not the label, and at
least as probable as the threshold of that class (confident learning, arXiv 1911.00068). An image's
score is the softmin over the probabilities of its labels (arXiv 2307.05080).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.common.console import progress_bar, warn
from zoo.common.errors import InputError, extra
from zoo.creation.create import load_trained
from zoo.data.dataset import IGNORE, Dataset, Sample
from zoo.data.doctor.codes import DisputedImage, DisputedPair, LabelIssues
from zoo.data.inspect.scan import data_hash, scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import webp
from zoo.data.pixels.overlay import as_rgb, comparison
from zoo.data.split import as_recorded
from zoo.evaluation.counts import most_frequent
from zoo.evaluation.evaluate import check_classes, check_input
from zoo.inference.predictor import Predictor
from zoo.inference.tiling import Tile
from zoo.models.segmentation import SegmentationModel

EXTRA, PURPOSE = "labels", "Comparing labels with a model (doctor --model)"
PAIRS = 3
"""How many pairs of classes are named for one image."""
LONGEST = 320
"""The longest side in pixels of each panel of a picture."""


class _Compared(NamedTuple):
    """Each pixel of an image or of a part: all arrays are H x W."""

    quality: NDArray[np.float32]
    """The probability of the label."""
    predicted: NDArray[np.uint8]
    disputed: NDArray[np.bool_]


class LabelCheck:
    """Compares the labels of some splits with the predictions of a model; call it to start.

    `model` and `data` are what `evaluate` takes. `splits` are by default all but train that have
    masks; a split that the model learned from is compared with a warning. `top` images get a
    picture. Every image is predicted twice, first for the thresholds of the classes; memory does
    not grow with the number of images. Raises InputError at once where cleanlab is not installed,
    where the model does not predict the classes of the data, and where a split cannot be used.
    """

    def __init__(
        self,
        model: str | Path | SegmentationModel,
        data: str | Path | Dataset,
        splits: Sequence[str] = (),
        top: int = 12,
    ):
        if top < 0:
            raise InputError(f"The number of images with a picture must be at least 0, not {top}.")
        extra("cleanlab.segmentation.rank", EXTRA, PURPOSE)
        self.model, self.top = load_trained(model), top
        dataset = load_dataset(data)
        for split in splits or ("val",):
            if not isinstance(model, SegmentationModel):
                dataset = as_recorded(dataset, model, split)
        self.dataset = dataset
        self.splits = tuple(dict.fromkeys(splits)) or tuple(
            split
            for split, samples in dataset.splits.items()
            if split != "train" and samples and all(sample.mask for sample in samples)
        )
        if not self.splits:
            raise InputError(
                f"{dataset.name} has no other split with masks than train. Give --split train "
                "(splits=) if the model did not learn from it; a model agrees with the labels it "
                "learned, right or wrong."
            )
        for split in self.splits:
            dataset.samples(split)
        check_classes(self.model, dataset.classes, dataset.name)
        check_input(self.model, dataset)
        scan_labels(dataset, self.splits)
        learned = ((self.model.provenance or {}).get("data_hash") or {}).get("train")
        for split in self.splits:
            if split == "train" or data_hash(dataset, split) == learned:
                warn(
                    f"{self.model.spec.name} may have learned from the split {split}: it agrees "
                    "with the labels it learned, right or wrong, so few faults will show. Better: "
                    "divide the images into folds (zoo data split --folds) and compare each with a "
                    "model that was trained on the others."
                )
        self.predictor = Predictor(self.model, fold=False)

    def __call__(self) -> LabelIssues:
        """Predict every image of the splits, twice. Raises InputError where all is ignored."""
        images = sum(len(self.dataset.samples(split)) for split in self.splits)
        with progress_bar() as bar:
            task = bar.add_task("compare labels", total=2 * images)
            thresholds = self._thresholds(lambda: bar.advance(task))
            return self._issues(thresholds, lambda: bar.advance(task))

    def _thresholds(self, after_image: Callable[[], None]) -> NDArray[np.float32]:
        """For each class the mean probability that it gets where it is the label."""
        batched = extra("cleanlab.experimental.label_issues_batched", EXTRA, PURPOSE)
        classes = len(self.dataset.classes)
        inspector = batched.LabelInspector(num_class=classes, store_results=False, verbose=False)
        pixels = 0

        for _, _, _, labels, tiles in self._predictions():
            for tile in tiles:
                here = labels[tile.rows, tile.columns]
                valid = here != IGNORE
                if valid.any():
                    probabilities = _probabilities(tile)[:, valid].T
                    inspector.update_confident_thresholds(
                        here[valid].astype(np.intp), np.ascontiguousarray(probabilities)
                    )
                    pixels += int(valid.sum())
            after_image()
        if not pixels:
            raise InputError(
                f"{self.dataset.name}, {', '.join(self.splits)}: every pixel is ignored, so there "
                "are no labels to compare."
            )
        thresholds: NDArray[np.float32] = inspector.get_confident_thresholds(silent=True)
        return thresholds.astype(np.float32)

    def _issues(
        self, thresholds: NDArray[np.float32], after_image: Callable[[], None]
    ) -> LabelIssues:
        classes = self.dataset.classes
        found: list[DisputedImage] = []
        pictures: dict[DisputedImage, bytes] = {}
        counts = np.zeros((len(classes), len(classes)), np.int64)
        labelled = np.zeros(len(classes), np.int64)
        for split, sample, image, labels, tiles in self._predictions():
            whole = _Compared(
                np.empty(labels.shape, np.float32),
                np.empty(labels.shape, np.uint8),
                np.empty(labels.shape, np.bool_),
            )
            for tile in tiles:
                place = (tile.rows, tile.columns)
                part = _compare(labels[place], _probabilities(tile), thresholds)
                whole.quality[place] = part.quality
                whole.predicted[place] = part.predicted
                whole.disputed[place] = part.disputed
            after_image()
            valid = labels != IGNORE
            if not valid.any():
                continue
            here_counts = np.zeros_like(counts)
            places = (labels[whole.disputed], whole.predicted[whole.disputed])
            np.add.at(here_counts, places, 1)
            here_labelled = np.bincount(labels[valid], minlength=len(classes))
            counts, labelled = counts + here_counts, labelled + here_labelled
            row = DisputedImage(
                split=split,
                name=sample.name,
                image=_below(sample.image, self.dataset.root),
                score=_image_score(whole.quality[valid]),
                disputed=int(whole.disputed.sum()),
                pixels=int(valid.sum()),
                pairs=tuple(_pairs(here_counts, here_labelled, classes)[:PAIRS]),
            )
            found.append(row)
            # only the pictures of the first images are kept
            first = sorted([*pictures, row], key=_rank)[: self.top]
            if row in first:
                picture = comparison(
                    as_rgb(image), labels, whole.predicted, classes, self.dataset.palette,
                    disputed=whole.disputed, longest=LONGEST,
                )  # fmt: skip
                pictures[row] = webp(picture)
            pictures = {one: pictures[one] for one in first}
        return LabelIssues(
            model=self.model.spec.name,
            splits=self.splits,
            images=sorted(found, key=_rank),
            pairs=_pairs(counts, labelled, classes),
            pictures=list(pictures.values()),
        )

    def _predictions(
        self,
    ) -> Iterator[tuple[str, Sample, Pixels, NDArray[np.uint8], Iterator[Tile]]]:
        """Each image H x W x C with its labels H x W and what the model says, one after another."""
        for split in self.splits:
            samples = self.dataset.samples(split)
            for (index,), images, masks in EvalLoader(self.dataset, split, batch_pixels=1):
                labels: NDArray[np.uint8] = masks[0].numpy()
                tiles = self.predictor.tiles(images)
                yield split, samples[index], images[0].permute(1, 2, 0).numpy(), labels, tiles


def _probabilities(tile: Tile) -> NDArray[np.float32]:
    """K x h x w of the only image."""
    found: NDArray[np.float32] = tile.probabilities()[0].cpu().numpy()
    return found


def _compare(
    labels: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    thresholds: NDArray[np.float32],
) -> _Compared:
    predicted = probabilities.argmax(axis=0).astype(np.uint8)
    best = np.take_along_axis(probabilities, predicted[None].astype(np.intp), axis=0)[0]
    valid = labels != IGNORE
    known = np.where(valid, labels, 0).astype(np.intp)
    quality = np.take_along_axis(probabilities, known[None], axis=0)[0]
    disputed = valid & (predicted != labels) & (best >= thresholds[predicted])
    return _Compared(quality, predicted, disputed)


def _image_score(quality: NDArray[np.float32]) -> float:
    """The score of an image by the probabilities of its valid labels.

    It depends on nothing else, so cleanlab gets them as one row of two classes, the label and the
    rest; ignored pixels, which it does not know, have no part in it.
    """
    rank = extra("cleanlab.segmentation.rank", EXTRA, PURPOSE)
    probabilities = np.stack([quality, 1 - quality])[None, :, None]
    labels = np.zeros((1, 1, quality.size), np.intp)
    scores, _ = rank.get_label_quality_scores(labels, probabilities, verbose=False)
    return round(float(np.clip(scores[0], 0, 1)), 6)


def _rank(image: DisputedImage) -> tuple[float, str, str]:
    return image.score, image.split, image.name


def _pairs(
    counts: NDArray[np.int64], labelled: NDArray[np.int64], classes: Sequence[str]
) -> list[DisputedPair]:
    """The pairs of a matrix label x prediction that occur, from the most pixels on."""
    return [
        DisputedPair(
            classes[label], classes[predicted], int(counts[label, predicted]),
            float(counts[label, predicted] / labelled[label]),
        )
        for label, predicted in most_frequent(counts)
    ]  # fmt: skip


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
