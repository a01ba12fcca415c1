"""Stored features: how an encoder's output for one image lies in a row of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class FeatureBatch:
    """What an encoder gave for some images; stands in for them in a training step.

    It has a length and takes slices, as a tensor of images does. `leaves` are the tensors of the
    encoder's output, each B x ... on the CPU (what is no tensor is the same for all images), and
    `structure` how they make up that output; `image_shape` is C x H x W of the images.
    """

    leaves: list[Any]
    structure: pytree.TreeSpec
    image_shape: tuple[int, ...]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> FeatureBatch:
        leaves = [leaf[part] if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        length = len(range(self.length)[part])
        return FeatureBatch(leaves, self.structure, self.image_shape, length)

    def forward(
        self, net: Callable[[Tensor], Any], encoder: nn.Module, device: torch.device | str
    ) -> Any:
        """What `net` gives where its `encoder` gives these features; nothing is encoded."""
        moved = [
            leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf
            for leaf in self.leaves
        ]
        features = pytree.tree_unflatten(moved, self.structure)
        images = torch.zeros((), device=device).expand(self.length, *self.image_shape)
        own = encoder.__dict__.get("forward")  # an engine may have put its own there
        encoder.forward = lambda *_: features
        try:
            return net(images)
        finally:
            del encoder.forward
            if own is not None:
                encoder.forward = own


@dataclass(frozen=True)
class Leaf:
    """One tensor of the features: bytes `start` to `end` of each row, none where both are equal.

    `shape` is that of one image; `channels_last` says how the values of a row are ordered.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    start: int
    end: int

    @classmethod
    def of(cls, batch: Tensor, start: int, needed: bool = True) -> Leaf:
        """The leaf that stores tensors like `batch`; nothing of them unless `needed`."""
        last = (
            batch.ndim == 4
            and not batch.is_contiguous()
            and batch.is_contiguous(memory_format=torch.channels_last)
        )
        size = batch[0].numel() * batch.element_size() if needed else 0
        return cls(tuple(batch.shape[1:]), batch.dtype, last, start, start + size)

    def pack(self, batch: Tensor) -> Tensor:
        """The bytes of a batch: uint8 B x (end - start)."""
        if self.start == self.end:
            return torch.empty((len(batch), 0), dtype=torch.uint8)
        ordered = batch.permute(0, 2, 3, 1) if self.channels_last else batch
        return ordered.cpu().reshape(len(batch), -1).view(torch.uint8)

    def unpack(self, rows: Tensor, numbers: list[int]) -> Tensor:
        """The tensor of the images `numbers`; zeros that take no memory where none is stored."""
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
    """Where the parts of an image's features and its mask lie in a row of bytes.

    A part is a `Leaf`, or a value that is no tensor and the same for all images.
    """

    parts: list[Any]
    structure: pytree.TreeSpec
    image_shape: tuple[int, ...]
    mask: Leaf

    @classmethod
    def of(cls, features: Any, needed: list[bool], images: Tensor, masks: Tensor) -> Layout:
        """The layout of `features`, an encoder's output; `needed` says which of its leaves are."""
        leaves, structure = pytree.tree_flatten(features)
        parts: list[Any] = []
        start = 0
        for value, kept in zip(leaves, needed, strict=True):
            part = Leaf.of(value, start, kept) if isinstance(value, Tensor) else value
            start = part.end if isinstance(part, Leaf) else start
            parts.append(part)
        return cls(parts, structure, tuple(images.shape[1:]), Leaf.of(masks, start))

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self.mask.end

    def pack(self, features: Any, masks: Tensor) -> Tensor:
        """The rows of a batch: uint8 B x row_bytes."""
        leaves = pytree.tree_leaves(features)
        kept = [
            part.pack(leaf)
            for part, leaf in zip(self.parts, leaves, strict=True)
            if isinstance(part, Leaf)
        ]
        return torch.cat([*kept, self.mask.pack(masks)], dim=1)

    def batch(self, rows: Tensor, numbers: list[int]) -> tuple[FeatureBatch, Tensor]:
        """Features and masks of the images `numbers` from `rows`, uint8 images x row_bytes."""
        leaves = [
            part.unpack(rows, numbers) if isinstance(part, Leaf) else part for part in self.parts
        ]
        features = FeatureBatch(leaves, self.structure, self.image_shape, len(numbers))
        return features, self.mask.unpack(rows, numbers)


def used_leaves(
    net: nn.Module, encoder: nn.Module, features: Any, image_shape: tuple[int, ...]
) -> list[bool]:
    """Which leaves of `features` the rest of `net` reads: those that its output has gradients for.

    U-Net, for example, gets the image itself as a first feature and leaves it aside. Nothing of
    `net` changes.
    """
    leaves, structure = pytree.tree_flatten(features)
    probes = [leaf[:1].detach().requires_grad_() if _is_float(leaf) else leaf for leaf in leaves]
    device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.enable_grad():
            outputs = FeatureBatch(probes, structure, image_shape, 1).forward(net, encoder, device)
            tensors = [value for value in pytree.tree_leaves(outputs) if _is_float(value)]
            total = torch.stack([tensor.float().sum() for tensor in tensors]).sum()
            wanted = [probe for probe in probes if _is_float(probe)]
            found = iter(torch.autograd.grad(total, wanted, allow_unused=True))
    finally:
        for module, mode in modes:
            module.training = mode
    return [next(found) is not None if _is_float(probe) else True for probe in probes]


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
