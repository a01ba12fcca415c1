"""From images to class ids and their files: `Predictor`, and `predict` for a single call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.common.console import track
from zoo.common.errors import InputError, RunError, indented, join_problems
from zoo.common.files import OutputFolder
from zoo.creation.create import load_trained
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.overlay import background_id
from zoo.data.split import as_recorded, recorded_data
from zoo.inference.inputs import Item, items_of
from zoo.inference.networks import TorchNetwork
from zoo.inference.outputs import Prediction, check_kinds, output_names, write_outputs
from zoo.inference.tiling import predict_ids
from zoo.models.segmentation import SegmentationModel
from zoo.runtime.processes import default_device

SAVE = ("palette", "overlay")
NAMED = 10
"""How many broken images an error names."""


class BrokenImagesError(RunError):
    """Some images cannot be predicted; all others are done."""


class Predictor:
    """A trained model that is ready to segment images.

    `model`: a run folder, a model folder, a repository, a name that stands for trained weights, or
    a model, which stays as it is. `precision`: fp32, bf16, fp16, or auto for the fastest that the
    device has. `device`: None for the accelerator, or the CPU without one. `spec` describes the
    model; `settings` says how it is run. Raises InputError for what cannot be predicted with.
    """

    def __init__(
        self,
        model: str | Path | SegmentationModel,
        *,
        precision: str = "auto",
        device: torch.device | str | None = None,
    ):
        loaded = load_trained(model)
        self.spec = loaded.spec
        self.network = TorchNetwork(
            loaded, precision=precision, device=default_device() if device is None else device
        )

    @property
    def settings(self) -> dict[str, Any]:
        """How images are predicted: what records and the files beside predictions state."""
        network = self.network
        return {
            "backend": network.backend,
            "precision": network.precision,
            "folded": network.folded,
        }

    def __call__(self, image: Any) -> Prediction:
        """Segment one image: a file, an array H x W or H x W x C, of PIL, or a tensor C x H x W.

        Raises InputError where it cannot be predicted.
        """
        items = list(items_of(image))
        if len(items) != 1:
            raise InputError(f"One image was expected, got {len(items)}. Use stream() for several.")
        return Prediction(items[0].image, self._ids(items[0].pixels(self.spec)))

    def stream(
        self,
        inputs: Any,
        *,
        out: str | Path | None = None,
        save: Sequence[str] = SAVE,
        background: str = "auto",
        overwrite: bool = False,
    ) -> Iterator[Prediction]:
        """Segment images one after another, in their order; nothing is kept.

        `inputs`: files, folders, patterns, arrays, images of PIL or tensors, one or many, or an
        iterator over them. With `out`, the files of the kinds `save` are written below it;
        `background` is the class that overlays leave unpainted, see `background_id`.

        Raises InputError at once where `OutputFolder` refuses `out` (`overwrite` allows other files
        to be replaced), at the end where not one image can be predicted, and BrokenImagesError at
        the end where some cannot.
        """
        folder = None if out is None else Path(out)
        return self._start(items_of(inputs, folder), folder, save, background, overwrite)

    def _start(
        self,
        items: Sequence[Item] | Iterator[Item],
        out: Path | None,
        save: Sequence[str],
        background: str,
        overwrite: bool,
        kept: Sequence[Path] = (),
    ) -> Iterator[Prediction]:
        """Check everything that can be checked beforehand; `kept` are files not to write to."""
        kinds = check_kinds(save)
        unpainted = background_id(self.spec.id_names, background)
        target, known = None, items if isinstance(items, Sequence) else ()
        if out is not None:
            names = [name for item in known for name in output_names(item.name, kinds).values()]
            inputs = [*(item.image for item in known if isinstance(item.image, Path)), *kept]
            target = OutputFolder(out, names, inputs=inputs, overwrite=overwrite)
        return self._predict(items, target, kinds, unpainted)

    def _predict(
        self,
        items: Sequence[Item] | Iterator[Item],
        target: OutputFolder | None,
        kinds: Sequence[str],
        unpainted: int | None,
    ) -> Iterator[Prediction]:
        broken: list[str] = []
        count = 0
        total = len(items) if isinstance(items, Sequence) else None
        for item in track(items, "predict", total):
            count += 1
            try:
                image = item.pixels(self.spec)
            except InputError as error:
                said = indented(error)
                broken.append(said if str(item.image) in said else f"{item.image}: {said}")
                continue
            mask, files = self._ids(image), {}
            if target is not None:
                files = write_outputs(target, item.name, kinds, image, mask, self.spec, unpainted)
            yield Prediction(item.image, mask, files)
        if broken:
            header = f"{len(broken)} of {count} images cannot be predicted"
            if len(broken) == count:
                raise InputError(join_problems(f"{header}:", broken, NAMED))
            raise BrokenImagesError(join_problems(f"{header}, the others are done:", broken, NAMED))

    def _ids(self, image: Pixels) -> NDArray[np.uint8]:
        """Class ids, uint8 H x W, of one uint8 image H x W x C."""
        batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
        network = self.network
        ids = predict_ids(
            network.model, batch, precision=network.precision, device=network.device
        )  # fmt: skip
        found: NDArray[np.uint8] = ids[0].cpu().numpy()
        return found


def predict(
    model: str | Path | SegmentationModel | Predictor,
    inputs: Any = None,
    *,
    out: str | Path | None = None,
    save: Sequence[str] = SAVE,
    split: str | None = None,
    data: str | Path | Dataset | None = None,
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
    if split is None:
        return predictor.stream(
            inputs, out=out, save=save, background=background, overwrite=overwrite
        )
    dataset = _data_of_run(model) if data is None else load_dataset(data)
    if isinstance(model, str | Path):
        dataset = as_recorded(dataset, model, split)
    samples = dataset.samples(split, masks=False)
    items = [Item(sample.image, sample.name, sample.image) for sample in samples]
    kept = [sample.mask for sample in samples if sample.mask is not None]
    folder = None if out is None else Path(out)
    return predictor._start(items, folder, save, background, overwrite, kept)


def _data_of_run(model: object) -> Dataset:
    """The data set that a run was trained on, from where its run.json says that it was."""
    recorded = recorded_data(model) if isinstance(model, str | Path) else None
    if recorded is None:
        raise InputError(
            "A split without --data (data=) needs a run folder, which knows its data. Give --data."
        )
    source = recorded.get("source")
    if not isinstance(source, str):
        raise InputError(f"{model} does not say where its data is. Give it by --data (data=).")
    try:
        return load_dataset(source)
    except InputError as error:
        raise InputError(
            f"The data that {model} was trained on cannot be used; --data (data=) says where it is "
            f"now. {error}"
        ) from error
