"""Encoders at a finer output stride: strides are removed and later layers dilated.

Weights stay as they are. Every position that the strided net computes is computed by the dilated
net too, from the same values, as in arXiv 1412.7062.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.models.meta import PlainNorms, sketched

SIDE = 1024
"""The side in pixels of the image that strides are measured with, on the meta device; large, since
some nets lose borders."""

Pair = tuple[int, int]


class DilationError(ValueError):
    """A net that cannot be dilated."""


class Site(NamedTuple):
    """Where a convolution or pooling works: the stride of its input in pixels, and whether it gives
    a map of the size that torch's own would."""

    stride: int
    plain: bool


class DilationPlan(NamedTuple):
    """The wanted output `stride` of a net, and the `sites` of its modules while it is undilated."""

    stride: int
    sites: dict[str, Site]


def plan_dilation(make: Callable[[], nn.Module], stride: int) -> DilationPlan:
    """How to dilate the net that `make` builds, found on the meta device.

    Raises DilationError where the net does not run there, or runs a module at several strides.
    """
    return DilationPlan(stride, _traced(_made(make))[0])


def can_dilate(make: Callable[[], nn.Module], stride: int) -> bool:
    """Whether `make()`, dilated, has the output stride wherever it was exceeded."""
    try:
        net = _made(make)
        sites, maps = _traced(net)
        dilate(net, DilationPlan(stride, sites))
        after, dilated = _traced(net)
    except DilationError:
        return False
    kept = all(site.stride == min(sites[name].stride, stride) for name, site in after.items())
    return kept and dilated == [min(old, stride) for old in maps]


def dilate(net: nn.Module, dilation: DilationPlan) -> None:
    """Dilate `net` to the output stride in place; its parameters and their names stay.

    Strides beyond the output stride are removed, and the convolutions and poolings behind them are
    dilated by the same factor. Where a window now reaches beyond the map, the last row and column
    are repeated; max pooling ignores that part. Raises DilationError for a module that cannot be
    dilated.
    """
    for name, module in _spatial(net):
        if (site := dilation.sites.get(name)) is None:
            continue
        kept = min(_pair(module.stride)[0], max(1, dilation.stride // site.stride))
        changed = _spread(module, max(1, site.stride // dilation.stride), kept, site.plain)
        if changed is not module:
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, changed)


class PaddedInput:
    """Pads the map that a module gets; a forward pre-hook.

    `padding` counts left, right, top and bottom as torch does, `value` is what stands there; None
    repeats the last row and column.
    """

    def __init__(self, padding: tuple[int, int, int, int], value: float | None = None):
        self.padding = padding
        self.value = value

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        """The module's input, padded."""
        mode = "replicate" if self.value is None else "constant"
        return functional.pad(given[0], self.padding, mode, self.value)


class DilatedAvgPool2d(nn.Module):
    """Average pooling dilated by `rate`; otherwise like torch's `pool`."""

    def __init__(self, pool: nn.AvgPool2d, rate: int):
        super().__init__()
        self.kernel_size = _pair(pool.kernel_size)
        self.stride = _pair(pool.stride)
        rows, columns = _pair(pool.padding)
        self.padding = (rows * rate, columns * rate)
        self.rate = rate
        self.count_include_pad = pool.count_include_pad

    def forward(self, features: Tensor) -> Tensor:
        """`features`: B x C x h x w."""
        sums = self._sums(features)
        if self.count_include_pad:
            return sums / math.prod(self.kernel_size)
        return sums / self._sums(torch.ones_like(features[:1, :1]))

    def _sums(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        ones = features.new_ones((channels, 1, *self.kernel_size))
        return functional.conv2d(
            features, ones, None, self.stride, self.padding, self.rate, groups=channels
        )


def _spatial(net: nn.Module) -> list[tuple[str, Any]]:
    """The convolutions and poolings of more than one pixel or step, by name."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, DilatedAvgPool2d)
    found: list[tuple[str, Any]] = [
        (name, module) for name, module in net.named_modules() if isinstance(module, kinds)
    ]
    return [
        (name, module)
        for name, module in found
        if max(*_pair(module.kernel_size), *_pair(module.stride)) > 1
    ]


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    with sketched():
        return make().eval()


def _traced(net: Any) -> tuple[dict[str, Site], list[int]]:
    """The sites of a features-only timm net and the strides of its maps, from one run."""
    found: dict[str, set[Site]] = {}

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        site = Site(_stride(given[0]), _is_plain(module, given[0], made))
        found.setdefault(name, set()).add(site)

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in _spatial(net)]
    try:
        with torch.no_grad(), PlainNorms():
            maps = net(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise DilationError(str(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    if shared := [name for name, sites in found.items() if len(sites) > 1]:
        raise DilationError(f"{shared[0]} works at several strides")
    return {name: sites.pop() for name, sites in found.items()}, [_stride(m) for m in maps]


def _stride(features: Tensor) -> int:
    """Pixels per value, as a power of two: maps without padding are a little smaller."""
    return int(2 ** round(math.log2(SIDE / features.shape[-2])))


def _is_plain(module: Any, given: Tensor, made: Tensor) -> bool:
    if isinstance(module.padding, str) or isinstance(module, DilatedAvgPool2d):
        return True
    sizes = []
    for axis in (0, 1):
        reach = (_pair(module.kernel_size)[axis] - 1) * _pair(getattr(module, "dilation", 1))[axis]
        steps = given.shape[axis - 2] + 2 * _pair(module.padding)[axis] - reach - 1
        rounded = math.ceil if getattr(module, "ceil_mode", False) else math.floor
        sizes.append(rounded(steps / _pair(module.stride)[axis]) + 1)
    return sizes == list(made.shape[-2:])


def _spread(module: Any, rate: int, kept: int, plain: bool) -> nn.Module:
    """The module with the stride `kept`, over values that lie `rate` pixels apart."""
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    if stride == (kept, kept) and (rate == 1 or kernel == (1, 1)):
        return cast(nn.Module, module)
    unlike = getattr(module, "padding_mode", "zeros") != "zeros" or (
        getattr(module, "divisor_override", None) is not None
    )
    if not plain or unlike or stride[0] != stride[1]:
        raise DilationError(f"a {type(module).__name__} that does not work as torch's own does")
    if stride[0] % kept:
        raise DilationError(f"a stride of {stride[0]} that is no multiple of {kept}")

    # rows and columns that lack for a map of as many values as the input, divided by `kept`
    steps, padding = _pair(getattr(module, "dilation", 1)), (0, 0)
    missing = [0, 0]
    if not isinstance(module.padding, str):
        padding = _pair(module.padding)
        if stride[0] > kept:
            missing = [
                max(0, ((kernel[axis] - 1) * steps[axis] - 2 * padding[axis]) * rate + 1 - kept)
                for axis in (0, 1)
            ]
    rows, columns = (size * rate for size in padding)
    module.stride = (kept, kept)
    if isinstance(module, nn.MaxPool2d):  # padded before, since torch pads by half a kernel at most
        before = PaddedInput(
            (columns, columns + missing[1], rows, rows + missing[0]), value=-math.inf
        )
        module.register_forward_pre_hook(before)
        module.padding, module.ceil_mode = 0, False
        module.dilation = (steps[0] * rate, steps[1] * rate)
        return module
    if isinstance(module, nn.AvgPool2d):
        module.ceil_mode = False
        if rate > 1:
            module = DilatedAvgPool2d(module, rate)
    if any(missing):
        module.register_forward_pre_hook(PaddedInput((0, missing[1], 0, missing[0])))
    if isinstance(module, nn.Conv2d):
        module.dilation = (steps[0] * rate, steps[1] * rate)
        if not isinstance(module.padding, str):
            module.padding = (rows, columns)
    return cast(nn.Module, module)


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
