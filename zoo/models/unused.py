"""Parameters that no output depends on: found without computing, then kept out of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zoo.models.meta import PlainNorms, sketched


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
    reached = _reached(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
    return {name for name, parameter in module.named_parameters() if id(parameter) not in reached}


def _reached(outputs: Iterable[Tensor]) -> set[int]:
    """The ids of the tensors whose gradient the backward pass of `outputs` would write."""
    found, seen = set(), set()
    todo: list[Any] = [output.grad_fn for output in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        todo += [following for following, _ in node.next_functions]
    return found


def keep_as_buffers(module: nn.Module, names: Iterable[str]) -> None:
    """Make buffers of the parameters of these names: they are stored but do not learn.

    They cannot be left out, since some nets compute with them what nobody reads.
    """
    for name in names:
        owner, _, own = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = holder.get_parameter(own).detach()
        delattr(holder, own)
        holder.register_buffer(own, value)
