"""Training on the stored features of a frozen encoder: each view of an image is encoded once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.common.console import info, track
from zoo.common.errors import InputError
from zoo.data.loading.decoded import room_bytes
from zoo.models.layers import in_eval_mode
from zoo.models.segmentation import normalise
from zoo.runtime.memory import cache_folder, default_cache_gib, gib, local_processes
from zoo.runtime.precision import autocast

if TYPE_CHECKING:
    from zoo.data.loading.loader import Key, TrainLoader
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe

Place = Literal["memory", "disk", "nowhere"]


def check_encoder(model: SegmentationModel, crop: int) -> None:
    """Raise InputError unless `model` reads a crop of `crop` pixels through one encoder at once."""
    window = model.spec.window
    if not isinstance(getattr(model.net, "encoder", None), nn.Module):
        raise InputError(
            f"{model.spec.name} has no encoder apart from its decoder, so its features cannot be "
            "stored. Leave feature_views out."
        )
    if window is not None and crop > min(window):
        raise InputError(
            f"{model.spec.name} sees a crop of {crop} pixels as several windows of {window[0]} x "
            f"{window[1]}, so its features cannot be stored. Set crop to {min(window)} or less, or "
            "leave feature_views out."
        )


@dataclass(frozen=True)
class FeatureBatch:
    """The features of some images, which take their place in a training step.

    It has a length and can be sliced, as a tensor of images can. `features` is what
    `SegmentationModel.encode` gives: tensors B x ..., perhaps nested; `image_shape` is C x H x W.
    """

    features: Any
    image_shape: tuple[int, ...]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> FeatureBatch:
        length = len(range(self.length)[part])
        return FeatureBatch(map_tensors(lambda x: x[part], self.features), self.image_shape, length)

    def to(self, device: torch.device) -> FeatureBatch:
        """The same features on another device."""
        moved = map_tensors(lambda x: x.to(device, non_blocking=True), self.features)
        return FeatureBatch(moved, self.image_shape, self.length)


class TrainingNet(nn.Module):
    """What a training step computes as one forward call, so that DDP and FSDP see it."""

    def __init__(self, model: SegmentationModel):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor | FeatureBatch) -> Any:
        """`training_outputs` of normalised images B x C x H x W, or of their features."""
        if isinstance(inputs, Tensor):
            return self.model.training_outputs(inputs)
        device = next(self.model.parameters()).device
        images = torch.zeros((), device=device).expand(len(inputs), *inputs.image_shape)
        return self.model.training_outputs(images, inputs.features)


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """`values` with `function` applied to every tensor in its lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: map_tensors(function, value) for key, value in values.items()}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(map_tensors(function, value) for value in values))
    if isinstance(values, list | tuple):
        return type(values)(map_tensors(function, value) for value in values)
    return values


def tensors_in(values: Any) -> list[Tensor]:
    """Every tensor in the lists, tuples and dicts of `values`, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, values)
    return found


class FeatureCache:
    """The batches of a run whose encoder is frozen for some of its epochs.

    Epoch e shows view e modulo `recipe.feature_views` of each image, as the loader augments it in
    the epoch of that number; the order of the images is the epoch's own. A view is encoded whole
    when an epoch first needs it, always in the same batches, so that a resumed run gets the same
    numbers. Views are kept in memory while there is room, then on disk; the rest are encoded in
    every epoch that shows them. `after_batch` is called between batches that are encoded and may
    raise to stop; `verbose` says where the views are kept.
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
        verbose: bool = True,
    ):
        self._model, self._loader, self._recipe = model, loader, recipe
        self._views = recipe.feature_views or 1
        self._precision, self._device = precision, device
        self._after_batch, self._verbose = after_batch, verbose
        self._forget()

    def _forget(self) -> None:
        self._rows: dict[int, Tensor | None] = {}
        self._layout: Layout | None = None
        self._places: list[Place] = []

    @property
    def image_bytes(self) -> int:
        """Bytes of one view of one image, with its mask; 0 before the first is encoded."""
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
                f"Features cannot be kept in {_folder()}: {error.strerror or error}. The run "
                "continues and encodes these views in every epoch."
            )
            return None

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Any:
        _encoder(self._model).eval()
        with autocast(self._precision, self._device):
            return self._model.encode(normalise(images, self._model.spec, self._device))

    def _plan(self, key: Key) -> Layout:
        """The layout of rows, from the images of `key`; decides where each view will be kept."""
        ((images, masks),) = self._loader.read([key])
        features = self._encode(images)
        with autocast(self._precision, self._device):
            used = used_features(self._model, features, tuple(images.shape[1:]))
        layout = Layout.of(features, used, images, masks)
        size = layout.row_bytes * self._loader.numbers
        views = min(self._views, sum(stage.epochs for stage in self._recipe.stages))
        memory = min(views, int(default_cache_gib() * 2**30) // size)
        disk = min(views - memory, room_bytes() // local_processes() // size)
        nowhere = views - memory - disk
        counts: dict[Place, int] = {"memory": memory, "disk": disk, "nowhere": nowhere}
        self._places = [place for place, count in counts.items() for _ in range(count)]
        if self._verbose:
            text = (
                f"The encoder is frozen: its features of {views} views of {self._loader.numbers} "
                f"images take {gib(size * views)}"
            )
            if memory == views:
                text += " and stays in memory."
            else:
                text += f"; {memory} views stay in memory and {disk} on disk in {_folder()}."
            if nowhere:
                text += (
                    f" The other {nowhere} are encoded in every epoch; set feature_views lower or "
                    "ZOO_CACHE_GIB higher for room on disk."
                )
            info(text)
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


@dataclass(frozen=True)
class Leaf:
    """One tensor of the features: bytes `start` to `end` of each row, none if both are equal.

    `shape` is that of one image; `channels_last` says how the values of a row are ordered.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    start: int
    end: int

    @classmethod
    def of(cls, batch: Tensor, start: int, used: bool = True) -> Leaf:
        """The leaf that stores tensors like `batch`; nothing of them unless `used`."""
        last = (
            batch.ndim == 4
            and not batch.is_contiguous()
            and batch.is_contiguous(memory_format=torch.channels_last)
        )
        size = batch[0].numel() * batch.element_size() if used else 0
        return cls(tuple(batch.shape[1:]), batch.dtype, last, start, start + size)

    def pack(self, batch: Tensor) -> Tensor:
        """The bytes of a batch: uint8 B x (end - start)."""
        if self.start == self.end:
            return torch.empty((len(batch), 0), dtype=torch.uint8)
        ordered = batch.permute(0, 2, 3, 1) if self.channels_last else batch
        return ordered.cpu().reshape(len(batch), -1).view(torch.uint8)

    def unpack(self, rows: Tensor, numbers: list[int]) -> Tensor:
        """The tensor of the images `numbers`; zeros that take no memory if none is stored."""
        if self.start == self.end:
            return torch.zeros((), dtype=self.dtype).expand(len(numbers), *self.shape)
        chosen = torch.stack([rows[number, self.start : self.end] for number in numbers])
        values = chosen.view(self.dtype)
        if not self.channels_last:
            return values.view(len(numbers), *self.shape)
        channels, height, width = self.shape
        return values.view(len(numbers), height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Layout:
    """Where an image's features and its mask lie in a row of bytes.

    `like` is the encoder's output for one batch without its values, `leaves` one `Leaf` for each of
    its tensors.
    """

    like: Any
    leaves: list[Leaf]
    image_shape: tuple[int, ...]
    mask: Leaf

    @classmethod
    def of(cls, features: Any, used: list[bool], images: Tensor, masks: Tensor) -> Layout:
        """The layout of `features`, an encoder's output; `used` says which of its tensors count."""
        leaves: list[Leaf] = []
        start = 0
        for tensor, kept in zip(tensors_in(features), used, strict=True):
            leaves.append(Leaf.of(tensor, start, kept))
            start = leaves[-1].end
        like = map_tensors(lambda _: torch.empty(0), features)
        return cls(like, leaves, tuple(images.shape[1:]), Leaf.of(masks, start))

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self.mask.end

    def pack(self, features: Any, masks: Tensor) -> Tensor:
        """The rows of a batch: uint8 B x row_bytes."""
        tensors = zip(self.leaves, tensors_in(features), strict=True)
        return torch.cat(
            [*(leaf.pack(tensor) for leaf, tensor in tensors), self.mask.pack(masks)], 1
        )

    def batch(self, rows: Tensor, numbers: list[int]) -> tuple[FeatureBatch, Tensor]:
        """Features and masks of the images `numbers` from `rows`, uint8 images x row_bytes."""
        unpacked = iter([leaf.unpack(rows, numbers) for leaf in self.leaves])
        features = map_tensors(lambda _: next(unpacked), self.like)
        return (
            FeatureBatch(features, self.image_shape, len(numbers)),
            self.mask.unpack(rows, numbers),
        )


def used_features(
    model: SegmentationModel, features: Any, image_shape: tuple[int, ...]
) -> list[bool]:
    """Which tensors of `features` the rest of `model` reads: those its output has gradients for.

    U-Net, for example, gets the image itself as its first feature and ignores it. Nothing of
    `model` changes.
    """
    probes = map_tensors(
        lambda x: x[:1].detach().requires_grad_() if x.is_floating_point() else x, features
    )
    with in_eval_mode(model), torch.enable_grad():
        outputs = TrainingNet(model)(FeatureBatch(probes, image_shape, 1))
        score = torch.stack([value.float().sum() for value in tensors_in(outputs)]).sum()
        floating = [probe for probe in tensors_in(probes) if probe.requires_grad]
        found = iter(torch.autograd.grad(score, floating, allow_unused=True))
    return [next(found) is not None if x.requires_grad else True for x in tensors_in(probes)]


def _encoder(model: SegmentationModel) -> nn.Module:
    encoder: nn.Module = model.net.get_submodule("encoder")
    return encoder


def _folder() -> Path:
    return cache_folder() / "features"
