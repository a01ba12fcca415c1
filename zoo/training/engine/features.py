"""Training on what a frozen encoder gave: each view of an image is encoded once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.common.console import info, track
from zoo.common.errors import InputError, join_problems
from zoo.data.loading.decoded import room_bytes
from zoo.models.preprocess import normalise
from zoo.runtime.memory import cache_folder, default_cache_gib, gib, local_processes
from zoo.runtime.precision import autocast
from zoo.training.engine.feature_rows import FeatureBatch, Layout, used_leaves
from zoo.training.engine.step import TrainingNet

if TYPE_CHECKING:
    from zoo.data.loading.loader import Key, TrainLoader
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe, Stage

Place = Literal["memory", "disk", "nowhere"]


def check_feature_views(recipe: Recipe) -> None:
    """Raise InputError where `recipe` asks for stored features that its other keys rule out."""
    if recipe.feature_views is None:
        return
    problems = []
    if recipe.augment.cutmix > 0 or recipe.augment.copy_paste > 0:
        problems.append(
            "augment.cutmix and augment.copy_paste take pixels from other images of the batch, "
            "which change with every epoch: set both to 0"
        )
    if recipe.oversample != "none":
        problems.append(
            "oversample draws images again and again, each time changed anew: set it to none "
            "(class_weights also make rare classes count more)"
        )
    if not any(_may_freeze(stage) for stage in recipe.stages):
        problems.append("the encoder learns in every stage: give one of them unfreeze=0")
    if problems:
        raise InputError(join_problems("feature_views cannot be used here:", problems))


def _may_freeze(stage: Stage) -> bool:
    if stage.learn != "all":
        return True
    return not stage.unfreeze_names and 0 in (stage.unfreeze, stage.unfreeze_from)


def check_encoder(model: SegmentationModel, crop: int) -> None:
    """Raise InputError unless `model` reads a crop of `crop` pixels through one encoder at once."""
    side = model.spec.img_size
    if not isinstance(getattr(model.net, "encoder", None), nn.Module):
        raise InputError(
            f"{model.spec.name} has no encoder apart from its decoder, so its features cannot be "
            "stored. Leave feature_views out."
        )
    if side is not None and crop > side:
        raise InputError(
            f"{model.spec.name} sees a crop of {crop} pixels as several windows of {side}, so its "
            f"features cannot be stored. Set crop to {side} or less, or leave feature_views out."
        )


class FeatureCache:
    """The batches of a run whose encoder is frozen for some of its epochs.

    Epoch e shows view e modulo `recipe.feature_views` of each image, the one that the loader draws
    in the epoch of that number; the order of the images is the epoch's own. A view is encoded whole
    when an epoch needs it first, always in the same batches, so that a resumed run gets the same
    numbers. It is kept in memory as far as there is room, then on disk; a view without room is
    read and encoded in every epoch that shows it. `after_batch` is called while a view is encoded
    and may raise to stop; `speak` allows remarks.
    """

    def __init__(
        self,
        model: SegmentationModel,
        loader: TrainLoader,
        recipe: Recipe,
        *,
        precision: str,
        device: torch.device | str,
        after_batch: Callable[[], None] = lambda: None,
        speak: bool = True,
    ):
        self._model, self._loader, self._recipe = model, loader, recipe
        self._views = recipe.feature_views or 1
        self._precision, self._device = precision, device
        self._after_batch, self._speak = after_batch, speak
        self._forget()

    def _forget(self) -> None:
        self._rows: dict[int, Tensor | None] = {}
        self._layout: Layout | None = None
        self._places: list[Place] = []

    @property
    def image_bytes(self) -> int:
        """What one view of one image takes, mask included; 0 before the first is encoded."""
        return 0 if self._layout is None else self._layout.row_bytes

    def epoch(
        self, epoch: int, first_step: int = 0
    ) -> Iterator[tuple[Tensor | FeatureBatch, Tensor]]:
        """The batches of an epoch from `first_step` on, as `TrainLoader.epoch` gives them.

        While the whole encoder is frozen, features stand in for the images if there is room.
        """
        if any(parameter.requires_grad for parameter in _encoder(self._model).parameters()):
            self._forget()
            yield from self._loader.epoch(epoch, first_step)
            return
        view = epoch % self._views
        keys = [(view, numbers) for _, numbers in self._loader.keys(epoch)[first_step:]]
        if view not in self._rows:
            self._rows[view] = self._encode_view(view)
        rows, layout = self._rows[view], self._layout
        if rows is None or layout is None:
            yield from self._loader.read(keys)
            return
        for _, numbers in keys:
            yield layout.batch(rows, numbers)

    def _encode_view(self, view: int) -> Tensor | None:
        """The rows of all images in one view; None where there is no room for them."""
        size, count = self._recipe.micro_batch or self._recipe.batch_size, self._loader.numbers
        keys = [(view, list(range(i, min(i + size, count)))) for i in range(0, count, size)]
        layout = self._layout = self._layout or self._plan(keys[0])
        if self._places[view] == "nowhere":
            return None
        try:
            store = _Rows(count, layout.row_bytes, on_disk=self._places[view] == "disk")
            batches = self._loader.read(keys)
            for images, masks in track(batches, f"encode view {view + 1}", len(keys)):
                store.add(layout.pack(self._encode(images), masks))
                self._after_batch()
            return store.finished()
        except OSError as error:
            self._places = ["memory" if p == "memory" else "nowhere" for p in self._places]
            info(
                f"Features cannot be kept in {_folder()}: {error.strerror or error}. The run goes "
                "on and encodes the images of such views in every epoch."
            )
            return None

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Any:
        encoder = _encoder(self._model).eval()
        with autocast(self._precision, self._device):
            return encoder(self._model.padded(normalise(images, self._model.spec, self._device)))

    def _plan(self, key: Key) -> Layout:
        """The layout of rows, by the images of `key`; settles where each view will be kept."""
        ((images, masks),) = self._loader.read([key])
        features = self._encode(images)
        with autocast(self._precision, self._device):
            net, encoder = TrainingNet(self._model), _encoder(self._model)
            needed = used_leaves(net, encoder, features, images.shape[1:])
        layout = Layout.of(features, needed, images, masks)
        size = layout.row_bytes * self._loader.numbers
        views = min(self._views, sum(stage.epochs for stage in self._recipe.stages))
        memory = min(views, int(default_cache_gib() * 2**30) // size)
        disk = min(views - memory, room_bytes() // local_processes() // size)
        counts: dict[Place, int] = {
            "memory": memory, "disk": disk, "nowhere": views - memory - disk
        }  # fmt: skip
        self._places = [place for place, count in counts.items() for _ in range(count)]
        if self._speak:
            info(_announcement(counts, size, self._loader.numbers))
        return layout


class _Rows:
    """The rows of one view while they are written, in memory or in a file without a name.

    Such a file vanishes with the process, however that ends.
    """

    def __init__(self, count: int, row_bytes: int, on_disk: bool):
        self._shape, self._done = (count, row_bytes), 0
        self._file: BinaryIO | None = None
        if on_disk:
            _folder().mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=_folder())  # noqa: SIM115
        else:
            self._memory = torch.empty(self._shape, dtype=torch.uint8)

    def add(self, rows: Tensor) -> None:
        """Write the next rows. Raises OSError where the disk is full."""
        if self._file is not None:
            self._file.write(rows.numpy().data)
        else:
            self._memory[self._done : self._done + len(rows)] = rows
        self._done += len(rows)

    def finished(self) -> Tensor:
        """All rows: uint8 images x row_bytes, read from the file where they are used."""
        if self._file is None:
            return self._memory
        self._file.flush()
        return torch.from_numpy(np.memmap(self._file, np.uint8, "c", 0, self._shape))


def _encoder(model: SegmentationModel) -> nn.Module:
    encoder: nn.Module = model.net.get_submodule("encoder")
    return encoder


def _folder() -> Path:
    return cache_folder() / "features"


def _announcement(counts: dict[Place, int], size: int, images: int) -> str:
    """What happens to the views, each of `size` bytes."""
    views = sum(counts.values())
    begin = f"The encoder is frozen: what it gives for {views} views of {images} images takes"
    if counts["memory"] == views:
        return f"{begin} {gib(size * views)} and stays in memory."
    text = (
        f"{begin} {gib(size * views)}; {counts['memory']} views stay in memory and "
        f"{counts['disk']} on disk in {_folder()}."
    )
    if not counts["nowhere"]:
        return text
    return (
        f"{text} The other {counts['nowhere']} are encoded in every epoch; set feature_views lower "
        "or ZOO_CACHE_GIB higher for room on disk."
    )
