"""From images to class ids and their files: `Predictor`, and `predict` for a single call."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.common.console import progress_bar
from zoo.common.errors import InputError, RunError, indented, join_problems
from zoo.common.files import OutputFolder
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.opening import max_pixels
from zoo.data.split import as_recorded, dataset_of_run, recorded_data
from zoo.inference.inputs import Item, items_of
from zoo.inference.networks import open_network
from zoo.inference.outputs import (
    SAVE,
    Measure,
    Prediction,
    Results,
    Wanted,
    check_results,
    large_names,
    measured,
    output_names,
)
from zoo.inference.raster import is_large_tiff, predict_raster
from zoo.inference.tiling import (
    NO_TTA,
    Source,
    Tile,
    Tta,
    Windows,
    joined,
    plan_windows,
    predict_tiles,
)
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import whole_number

TRAINING = ("dataset", "recipe", "recipe_hash", "seed")
"""What a JSON file says of a model's training."""
BATCH_PIXELS = {"cpu": 2**20, "accelerator": 2**23}
"""How many pixels, as the network sees them, are predicted at once; one image may have more."""
MOST_THREADS = 8
NAMED = 10
"""How many broken images an error names."""

Predicted = tuple[NDArray[np.uint8], dict[Measure, NDArray[np.float32]]]
"""Class ids of an image, H x W, and the quantities that were asked for."""


class BrokenImagesError(RunError):
    """Some images cannot be predicted; all others are done."""


class Predictor:
    """A trained model that is ready to segment images.

    `model`: a run folder, a model folder, a repository, a name that stands for trained weights, a
    model, which stays as it is, or a file of `zoo export`. `backend`: torch, onnxruntime, openvino,
    or auto for torch, and for a file what it was exported for. `precision`: fp32, bf16, fp16, or
    auto for the fastest that backend and device have. `fold` makes BatchNorm a part of the
    convolutions before it, `compile` compiles the network, on GPUs only. `window`, `overlap`
    and `blend` are those of `plan_windows`, `tta` that of `Tta.parse`. `device`: None for the
    accelerator, or the CPU without one. `batch_size` is how many images of one size are predicted
    at once, by default as many as have `BATCH_PIXELS` pixels together.

    `spec` describes the model, `identity` says which weights it has, `training` what is known of
    how it was trained (see `known_training`), and `settings` how it is run. `model` is the model
    itself, None for an exported file. Raises InputError for what cannot be predicted with.
    """

    def __init__(
        self,
        model: str | Path | SegmentationModel,
        *,
        backend: str = "auto",
        precision: str = "auto",
        fold: bool = True,
        compile: bool = False,
        window: int | str | None = "auto",
        overlap: float | None = None,
        blend: str = "auto",
        tta: str = "none",
        device: torch.device | str | None = None,
        batch_size: int | None = None,
    ):
        self.batch_size = None
        if batch_size is not None:
            self.batch_size = whole_number("batch_size", batch_size, "a number of images")
        opened = open_network(
            model, backend=backend, precision=precision, device=device, fold=fold, compile=compile
        )
        self.network, self.spec, self.model = opened.network, opened.spec, opened.model
        self.training = known = opened.training or {}
        self.identity = {
            "name": opened.spec.name,
            "weights": opened.weights,
            **{key: known[key] for key in TRAINING if key in known},
        }
        self.tta = Tta.parse(tta, self.network.size or self.spec.window)
        self._windows: dict[str, Any] = {"window": window, "overlap": overlap, "blend": blend}
        self.windows(*self.spec.example_size())  # what cannot be is said now
        if self.tta != NO_TTA and self.network.ids_only:
            raise InputError(
                f"This file of {self.spec.name} gives class ids, so there are no probabilities to "
                "average. Export the model without --argmax for that."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """How images are predicted: what records and the files beside predictions state.

        `window` is auto, None for whole images, or a side in pixels.
        """
        network, asked = self.network, self._windows["window"]
        plan = self.windows(*self.spec.example_size())
        side = int(asked) if isinstance(asked, str) and asked.isdecimal() else asked
        return {
            "backend": network.backend,
            "precision": network.precision,
            "folded": network.folded,
            "window": None if side == "none" else side,
            "overlap": plan.overlap,
            "blend": plan.blend,
            "tta": str(self.tta),
        }

    def settings_at(self, height: int, width: int) -> dict[str, Any]:
        """`settings` as they are used for an image of this size, in pixels.

        `window` is the side or the sides of the windows in pixels as the network sees them; it,
        `overlap` and `blend` are None for an image that is predicted as a whole.
        """
        plan = self.windows(height, width)
        used: dict[str, Any] = dict.fromkeys(("window", "overlap", "blend"))
        if plan.window is not None:
            used = {"window": plan.window, "overlap": plan.overlap, "blend": plan.blend}
        return self.settings | used

    def windows(self, height: int, width: int) -> Windows:
        """How an image of `height` x `width` pixels is divided."""
        return plan_windows(self.spec, height, width, size=self.network.size, **self._windows)

    def tiles(self, images: torch.Tensor | Source) -> Iterator[Tile]:
        """The scores of images, uint8 B x C x H x W, or of a source, part by part.

        Raises InputError where scores are NaN or infinite.
        """
        if isinstance(images, torch.Tensor):
            height, width = images.shape[-2:]
        else:
            height, width = images.height, images.width
        windows = self.windows(height, width)
        for tile in predict_tiles(self.network, self.spec, images, windows, self.tta):
            self._check_finite(tile)
            yield tile

    def _check_finite(self, tile: Tile) -> None:
        if tile.finite:
            return
        precision = self.network.precision
        raise InputError(
            f"The network gives NaN or infinite scores in {precision}. "
            + (
                "Use --precision fp32 (precision=)."
                if precision != "fp32"
                else "Its weights are unfit for such an image: use another checkpoint, or train "
                "again at a lower learning rate."
            )
        )

    def results(self, **wanted: Unpack[Wanted]) -> Results:
        """What a call asks for, see `check_results`.

        Raises InputError for probabilities of a file that gives class ids.
        """
        results = check_results(self.spec, **wanted)
        if results.measures and self.network.ids_only:
            raise InputError(
                f"This file of {self.spec.name} gives class ids, no {min(results.measures)}. "
                "Export the model without --argmax for that."
            )
        return results

    def __call__(self, image: Any, **wanted: Unpack[Wanted]) -> Prediction:
        """Segment one image: a file, an array H x W or H x W x C, of PIL, or a tensor C x H x W.

        `wanted` are `probabilities`, `confidence`, `entropy` and `min_area`, as for `stream`.
        Raises InputError where the image cannot be predicted.
        """
        items = list(items_of(image))
        if len(items) != 1:
            raise InputError(f"One image was expected, got {len(items)}. Use stream() for several.")
        results = self.results(**wanted)
        pixels = items[0].pixels(self.spec)
        ((mask, measures),) = self._predicted([pixels], results.measures)
        return results.finish(items[0].image, items[0].name, pixels, mask, measures)

    def stream(
        self,
        inputs: Any,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        **wanted: Unpack[Wanted],
    ) -> Iterator[Prediction]:
        """Segment images, whose results come in their order; nothing is kept.

        Threads read the next images and write the last ones while the network runs.

        `inputs`: files, folders, patterns, arrays, images of PIL or tensors, one or many, or an
        iterator over them. With `out`, files are written below it, of the kinds `save` (a name or
        a list, palette and overlay by default; see docs/predict.md) and always the JSON.

        Predictions hold what `probabilities`, `confidence` and `entropy` ask for, all False by
        default. Components of fewer than `min_area` pixels (0) are removed, see `remove_small`.
        `background` ("auto") is the class that overlays leave unpainted and polygons leave out, see
        `background_id`.

        Raises InputError at once where `OutputFolder` refuses `out` (`overwrite` allows other files
        to be replaced), at the end where not one image can be predicted, and BrokenImagesError at
        the end where some cannot.
        """
        results = self.results(**wanted)
        folder = None if out is None else Path(out)
        return self._start(items_of(inputs, folder), folder, results, overwrite)

    def _start(
        self,
        items: Sequence[Item] | Iterator[Item],
        out: Path | None,
        results: Results,
        overwrite: bool,
        kept: Sequence[Path] = (),
    ) -> Iterator[Prediction]:
        """Check everything that can be checked beforehand; `kept` are files not to write to."""
        target, known = None, items if isinstance(items, Sequence) else ()
        if out is not None:
            names = [
                name for item in known
                for name in _names(item, results).values()
            ]  # fmt: skip
            inputs = [*(item.image for item in known if isinstance(item.image, Path)), *kept]
            target = OutputFolder(out, names, inputs=inputs, overwrite=overwrite)
        return self._predict(items, target, results)

    def _predict(
        self,
        items: Sequence[Item] | Iterator[Item],
        target: OutputFolder | None,
        results: Results,
    ) -> Iterator[Prediction]:
        total = len(items) if isinstance(items, Sequence) else None
        broken: list[str] = []
        count, most = 0, 1
        following = iter(items)
        reading: deque[tuple[Item, Future[Pixels | None]]] = deque()
        finishing: deque[tuple[Item, Future[Any]]] = deque()  # predictions, and what failed before
        with _threads() as threads, progress_bar() as bar:
            task = bar.add_task("predict", total=total)
            while True:
                batch: list[tuple[Item, Pixels]] = []
                while len(batch) < most:
                    ahead = itertools.islice(following, max(0, 2 * most - len(reading)))
                    reading.extend(
                        (item, threads.submit(self._read, item, target)) for item in ahead
                    )
                    if not reading:
                        break
                    item, read = reading[0]
                    if read.exception() is not None:
                        finishing.append(reading.popleft())
                        continue
                    pixels = read.result()
                    if batch and (pixels is None or pixels.shape != batch[0][1].shape):
                        break
                    reading.popleft()
                    if pixels is None:
                        finishing.append((item, self._large(item, target, results)))
                        break
                    batch.append((item, pixels))
                    most = self.images_at_once(*pixels.shape[:2])
                if batch:
                    predicted = self._each([p for _, p in batch], results.measures)
                    about = self._about(*batch[0][1].shape[:2])
                    for (item, pixels), one in zip(batch, predicted, strict=True):
                        finished = (
                            _failed(one)
                            if isinstance(one, InputError)
                            else threads.submit(
                                results.finish, item.image, item.name, pixels, *one, target, about
                            )
                        )
                        finishing.append((item, finished))
                while finishing and (
                    finishing[0][1].done() or len(finishing) > 2 * most or not batch
                ):
                    item, finished = finishing.popleft()
                    count += 1
                    bar.advance(task)
                    try:
                        prediction: Prediction = finished.result()
                    except InputError as error:
                        said = indented(error)
                        broken.append(said if str(item.image) in said else f"{item.image}: {said}")
                    else:
                        yield prediction
                if not batch and not reading:
                    break
        if broken:
            header = f"{len(broken)} of {count} images cannot be predicted"
            if len(broken) == count:
                raise InputError(join_problems(f"{header}:", broken, NAMED))
            raise BrokenImagesError(join_problems(f"{header}, the others are done:", broken, NAMED))

    def _read(self, item: Item, target: OutputFolder | None) -> Pixels | None:
        """The pixels of an image; None for one that is to be predicted window by window."""
        if not isinstance(item.given, Path) or not is_large_tiff(item.given):
            return item.pixels(self.spec)
        if target is None:
            raise InputError(
                f"{item.given} has more than {max_pixels() / 1e6:g} megapixels. Give out= (--out), "
                "and it is predicted window by window into a GeoTIFF."
            )
        return None

    def _large(
        self, item: Item, target: OutputFolder | None, results: Results
    ) -> Future[Prediction]:
        """The prediction of a TIFF beyond the megapixel limit, done when this returns."""
        assert target is not None
        done: Future[Prediction] = Future()
        try:
            results.check_large(item.given)
            name = large_names(item.name, results.kinds)["geotiff"]
            found = predict_raster(item.given, self.spec, self.tiles, self.windows, target, name)
            about = self._about(*found.size)
            done.set_result(results.finish_large(item.given, item.name, found, target, about))
        except (InputError, RunError) as error:
            return _failed(error)
        return done

    def _about(self, height: int, width: int) -> dict[str, Any]:
        """What the JSON beside a prediction says of the model and how it was run."""
        return {"model": self.identity, "settings": self.settings_at(height, width)}

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of this size, in pixels, are predicted at once."""
        if self.batch_size is not None:
            return self.batch_size
        height, width = self.spec.input_size(height, width)
        most = BATCH_PIXELS["cpu" if self.network.device.type == "cpu" else "accelerator"]
        return max(1, most // (height * width))

    def _each(
        self, images: Sequence[Pixels], wanted: Collection[Measure]
    ) -> list[Predicted | InputError]:
        """As `_predicted`, but with the error of each image that cannot be predicted."""
        try:
            return [*self._predicted(images, wanted)]
        except InputError as error:
            if len(images) == 1:
                return [error]
            return [self._each([one], wanted)[0] for one in images]

    def _predicted(self, images: Sequence[Pixels], wanted: Collection[Measure]) -> list[Predicted]:
        """Class ids, uint8 H x W, of each of some images uint8 H x W x C of one size.

        With them the quantities `wanted`.
        """
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        shape = (len(images), *images[0].shape[:2])
        ids, measures = assembled(self.tiles(batch), shape, wanted)
        if len(images) == 1:
            return [(ids[0], {measure: values[0] for measure, values in measures.items()})]
        return [  # copies: a prediction that is kept should not keep those of its batch
            (ids[index].copy(), {measure: one[index].copy() for measure, one in measures.items()})
            for index in range(len(images))
        ]


def _failed(error: Exception) -> Future[Any]:
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return failed


def _names(item: Item, results: Results) -> dict[str, str]:
    """The files of an image, by kind."""
    large = isinstance(item.given, Path) and is_large_tiff(item.given)
    return (large_names if large else output_names)(item.name, results.kinds)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for reading and writing; what has not begun when the block ends is dropped."""
    threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "zoo-predict")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def assembled(
    tiles: Iterable[Tile], shape: tuple[int, int, int], wanted: Collection[Measure] = ()
) -> tuple[NDArray[np.uint8], dict[Measure, NDArray[np.float32]]]:
    """Tiles that cover B images of H x W pixels, `shape`, as one: class ids, uint8 B x H x W.

    Beside them the quantities `wanted`, float32, see `measured`. Nothing else is kept of a tile.
    """
    measures: dict[Measure, NDArray[np.float32]] = {}

    def measure_tile(tile: Tile) -> None:
        for measure, values in measured(tile.probabilities(), wanted).items():
            if measure not in measures:
                whole = (*values.shape[:-2], *shape[1:])
                measures[measure] = np.empty(whole, np.float32)
            measures[measure][..., tile.rows, tile.columns] = values.cpu().numpy()

    ids: NDArray[np.uint8] = joined(tiles, shape, measure_tile if wanted else None).numpy()
    return ids, measures


def predict(
    model: str | Path | SegmentationModel | Predictor,
    inputs: Any = None,
    *,
    out: str | Path | None = None,
    split: str | None = None,
    data: str | Path | Dataset | None = None,
    save: str | Sequence[str] = SAVE,
    probabilities: bool = False,
    confidence: bool = False,
    entropy: bool = False,
    min_area: int = 0,
    background: str = "auto",
    overwrite: bool = False,
    **options: Any,
) -> Iterator[Prediction]:
    """Segment images; an iterator over the results, in the order of the images.

    `inputs` and the arguments for the output are those of `Predictor.stream`, `options` those of
    `Predictor`. Instead of images, `split` names a split of `data`, by default of the data set that
    the run `model` was trained on. The arguments are checked at once, and images are predicted as
    the results are asked for; `list(zoo.predict(...))` does them all. Raises as `Predictor` and
    `stream` do.
    """
    if split is None and data is not None:
        raise InputError("data= (--data) goes with split= (--split): name a split of the data set.")
    absent = inputs is None or (isinstance(inputs, list | tuple) and not inputs)
    if (split is None) == absent:
        raise InputError(
            "Nothing to predict: give at least one image, folder or pattern, or a split (--split)."
            if absent
            else "Give either images or a split (--split), not both."
        )
    predictor = model if isinstance(model, Predictor) else Predictor(model, **options)
    results = predictor.results(
        save=save, probabilities=probabilities, confidence=confidence,
        entropy=entropy, min_area=min_area, background=background,
    )  # fmt: skip
    folder = None if out is None else Path(out)
    if split is None:
        return predictor._start(items_of(inputs, folder), folder, results, overwrite)
    if data is not None:
        dataset = load_dataset(data)
    elif isinstance(model, str | Path) and recorded_data(model) is not None:
        dataset = dataset_of_run(model)
    else:
        raise InputError(
            "A split without --data (data=) needs a run folder, which knows its data. Give --data."
        )
    if isinstance(model, str | Path):
        dataset = as_recorded(dataset, model, split)
    samples = dataset.samples(split, masks=False)
    items = [Item(sample.image, sample.name, sample.image) for sample in samples]
    kept = [sample.mask for sample in samples if sample.mask is not None]
    return predictor._start(items, folder, results, overwrite, kept)
