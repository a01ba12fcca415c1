"""Nets on the device `meta`, where shapes and dependencies are known and nothing is computed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _RatesOnCpu(TorchFunctionMode):
    """SMP's mix transformers read the numbers of a linspace, which the device `meta` has not."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        on_cpu = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(on_cpu | (kwargs or {})))


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """While it lasts, tensors are made on the device `meta` unless another one is asked for."""
    with torch.device("meta"), _RatesOnCpu():
        yield


@contextlib.contextmanager
def sketched() -> Iterator[None]:
    """While it lasts, modules are made on `meta` to be run there: all their tensors are there.

    There are no warnings, and no numbers are drawn, since none would be kept.
    """
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
