"""Nets on the meta device, where nothing is computed: how to build them, what to find out."""

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
    """Keeps `torch.linspace` on the CPU: SMP's mix transformers read its values while building."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        on_cpu = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(on_cpu | (kwargs or {})))


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """A context in which tensors are created on the meta device unless another is given."""
    with torch.device("meta"), _RatesOnCpu():
        yield


@contextlib.contextmanager
def sketched() -> Iterator[None]:
    """A context in which modules are built on the meta device, to be run there.

    Warnings are off, and no random numbers are drawn, since none would be kept.
    """
    with torch.device("meta"), Undrawn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Undrawn(TorchFunctionMode):
    """Skips random initialisation, for weights that are loaded afterwards or never read."""

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
    """Records the tensors that values are copied into, as loading weights does.

    `from_integers` is True once integers were copied into a tensor of floating point.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[Tensor] = []  # kept, so that their memory is not used again
        self._places: set[int] = set()
        self.from_integers = False

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
            to, source = args[0], args[1]
            self.from_integers |= to.is_floating_point() and not source.is_floating_point()
        return func(*args, **(kwargs or {}))

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether something was copied into the memory of `tensor`."""
        return tensor.untyped_storage().data_ptr() in self._places


class PlainNorms(TorchFunctionMode):
    """Reduces batch normalisation to its last step, scale and shift.

    On the meta device the whole of it takes most of a net's time.
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


def unused_parameters(
    make: Callable[[], nn.Module], in_chans: int, size: tuple[int, int]
) -> set[str]:
    """Names of the parameters of `make()` that get no gradient from any of its outputs.

    The module is built and run on the meta device with one image of `size` (height, width). Returns
    an empty set for a module that cannot run there.
    """
    try:
        with sketched():
            module = make().train()
        with PlainNorms():
            outputs = module(torch.empty(1, in_chans, *size, device="meta"))
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
    """Turn the parameters of these names into buffers: stored, but not trained.

    They cannot be deleted, since some nets compute unused outputs with them.
    """
    for name in sorted(names):
        owner, _, own = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = holder.get_parameter(own).detach()
        delattr(holder, own)
        holder.register_buffer(own, value)
