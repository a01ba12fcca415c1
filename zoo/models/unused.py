"""Parameters that no output depends on: found without computing, then kept out of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def unused_parameters(make: Callable[[], nn.Module], in_chans: int, side: int) -> set[str]:
    """Names of the parameters of `make()` that get no gradient from any of its outputs.

    The module is made and run on the meta device with one square image of `side` pixels, which
    computes nothing; a module that cannot run there has no unused parameters as far as is known.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                module = make().train()
            parameters = dict(module.named_parameters())
            leaves = tree_leaves(module(torch.empty(1, in_chans, side, side, device="meta")))
            sums = [leaf.sum() for leaf in leaves if isinstance(leaf, Tensor) and leaf.grad_fn]
            grads = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
        except (RuntimeError, NotImplementedError):
            return set()
    return {name for name, grad in zip(parameters, grads, strict=True) if grad is None}


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
