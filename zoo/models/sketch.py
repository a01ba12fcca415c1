"""Nets on the meta device, where shapes and dependencies are known and nothing is computed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Meanwhile modules are made on the meta device, without warnings."""
    with torch.device("meta"), Undrawn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Undrawn(TorchFunctionMode):
    """Meanwhile no random numbers are drawn in place: what is loaded or never read need not be."""

    draws = frozenset([Tensor.normal_, Tensor.uniform_, Tensor.erfinv_])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return args[0] if func in self.draws else func(*args, **(kwargs or {}))


class PlainNorms(TorchFunctionMode):
    """Meanwhile a batch normalisation is its last step alone, which depends on the same tensors.

    On the meta device the whole one takes most of a net's time.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.batch_norm:
            return _last_step(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _last_step(*args: Any, **kwargs: Any) -> Tensor:
    """Weight and bias of torch's `batch_norm`, given its arguments."""
    names = ("input", "running_mean", "running_var", "weight", "bias")
    given = dict(zip(names, args, strict=False)) | kwargs
    features: Tensor = given["input"]
    shape = (1, -1, *[1] * (features.dim() - 2))
    if (weight := given.get("weight")) is not None:
        features = features * weight.view(shape)
    if (bias := given.get("bias")) is not None:
        features = features + bias.view(shape)
    return features
