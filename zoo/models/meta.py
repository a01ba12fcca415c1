"""Building networks without memory for their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
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
