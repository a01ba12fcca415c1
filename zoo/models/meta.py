"""Nets on the meta device, where nothing is computed, and what is learned from them there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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


class Written(TorchFunctionMode):
    """Notes the tensors that values are copied into while it lasts, as loading weights does."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[Tensor] = []  # kept, so that their memory is not used again
        self._places: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func == Tensor.copy_:
            self._tensors.append(args[0])
            self._places.add(args[0].untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether something was copied into the memory of `tensor`."""
        return tensor.untyped_storage().data_ptr() in self._places


class PlainNorms(TorchFunctionMode):
    """While it lasts, a batch normalisation is only its last step, on the same tensors.

    On the meta device the whole one takes most of a net's time.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not functional.batch_norm:
            return func(*args, **(kwargs or {}))
        names = ("input", "running_mean", "running_var", "weight", "bias")
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        features: Tensor = given["input"]
        shape = (1, -1, *[1] * (features.dim() - 2))
        if (weight := given.get("weight")) is not None:
            features = features * weight.view(shape)
        if (bias := given.get("bias")) is not None:
            features = features + bias.view(shape)
        return features


def unused_parameters(make: Callable[[], nn.Module], in_chans: int, side: int) -> set[str]:
    """Names of the parameters of `make()` that get no gradient from any of its outputs.

    The module is made and run on the meta device with one square image of `side` pixels, which
    computes nothing; a module that cannot run there has no unused parameters as far as is known.
    """
    try:
        with sketched():
            module = make().train()
        with PlainNorms():
            outputs = module(torch.empty(1, in_chans, side, side, device="meta"))
    except (RuntimeError, NotImplementedError):
        return set()
    # the tensors whose gradient the backward pass would write
    reached, seen = set(), set()
    todo: list[Any] = [output.grad_fn for output in _tensors(outputs)]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            reached.add(id(variable))
        todo += [following for following, _ in node.next_functions]
    return {name for name, parameter in module.named_parameters() if id(parameter) not in reached}


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors in lists and tuples of any depth."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, list | tuple):
        for part in outputs:
            yield from _tensors(part)


def keep_as_buffers(module: nn.Module, names: Iterable[str]) -> None:
    """Make buffers of the parameters of these names: they are stored but do not learn.

    They cannot be left out, since some nets compute with them what nobody reads.
    """
    for name in sorted(names):
        owner, _, own = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = holder.get_parameter(own).detach()
        delattr(holder, own)
        holder.register_buffer(own, value)
