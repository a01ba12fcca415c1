"""Generates and checks the table of timm's encoders: `python -m zoo.checks.encoder_table --check`.

Every net is built and run on the meta device, so nothing is computed and nothing is downloaded; the
few nets whose doing depends on numbers run on the CPU, with random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.common.console import info, track
from zoo.common.errors import InputError, shortened
from zoo.common.files import write_text
from zoo.models.dilation import can_dilate
from zoo.models.meta import sketched
from zoo.registry import encoders as table
from zoo.registry.decoders import defaults
from zoo.registry.encoder_args import ARGUMENTS_FILE, EncoderArguments, accepted
from zoo.registry.encoders import Encoder, Weights, matches
from zoo.registry.load import load_registry
from zoo.registry.resolve import adapted, resolve

FOLDER = Path(table.__file__).parent
COMMAND = "python -m zoo.checks.encoder_table --write"
SIDES = (256, 320)
"""Two sides in pixels, so that a net bound to one of them cannot pass for one that takes any; they
are rounded up to multiples of the net's largest stride."""

CONV_FRACTION = 0.2
"""A net with attention and at least this fraction of its parameters in convolutions is a hybrid."""


PROBES: dict[str, Any] = {
    "act_layer": "gelu",
    "init_values": 1e-5,
    "no_embed_class": True,
    "norm_layer": "layernorm2d",
    "pad_type": "same",
    "qk_norm": True,
    "reg_tokens": 4,
    "window_size": 8,
    **dict.fromkeys(("bn_eps", "bn_momentum", "norm_eps"), 1e-3),
    **{name: 0.1 for name in EncoderArguments.model_fields if name.endswith("_rate")},
}
"""A value of each argument that tells whether a net takes it; a patch is doubled."""

Size = tuple[int, int]
"""Height and width in pixels."""


def measure(name: str) -> Encoder:
    """Build the timm net `name` on the meta device and read what the registry matches on."""
    cfg = timm.get_pretrained_cfg(name)
    native: Size = (cfg.input_size[1], cfg.input_size[2])
    net = _build(name)
    if _reads_numbers(net, native):
        net = _build(name, device="cpu")
    reductions = net.feature_info.reduction()
    resizes = _resizes(name, net)
    size = (SIDES[0],) * 2 if resizes == "any" and SIDES[0] % max(reductions) == 0 else native
    sizes, has_attention = _run(net, size)
    kind = _kind(net, has_attention)
    dilates = _joined(stride for stride in (8, 16) if _dilates(name, stride, size))
    dilatable = ""
    if not dilates and kind == "cnn":
        # The output strides that zoo itself dilates the net to, below the stride that it has.
        make = partial(timm.create_model, name, features_only=True)
        coarser = [stride for stride in (8, 16) if stride < max(reductions)]
        dilatable = _joined(stride for stride in coarser if can_dilate(make, stride))
    blocks, prefix_tokens = _blocks(name, native) if len(set(reductions)) == 1 else (0, 0)
    return Encoder(
        name=name,
        module=timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[1],
        kind=kind,
        reductions=_joined(reductions),
        channels=_joined(net.feature_info.channels()),
        inexact_sizes=_joined(
            stride
            for stride, found in zip(reductions, sizes, strict=True)
            if found != _reduced(size, stride)
        ),
        dilates=dilates,
        dilatable=dilatable,
        resizes=resizes,
        blocks=str(blocks),
        prefix_tokens=str(prefix_tokens),
        params_m=f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}",
        input_size=_joined(cfg.input_size),
        mean=_joined(cfg.mean),
        std=_joined(cfg.std),
        license=cfg.license or "",
        tags=_joined(_tags(name)),
    )


def weight_rows() -> list[Weights]:
    """One row per pretrained weights of the installed timm; the default of a name comes first."""
    return [
        Weights(
            name=name,
            tag=tag,
            hub_id=cfg.hf_hub_id or "",
            mean=_joined(cfg.mean),
            std=_joined(cfg.std),
            license=cfg.license or "",
            input_size=_joined(cfg.input_size),
        )
        for name in timm.list_models()
        for tag in _tags(name)
        for cfg in [timm.get_pretrained_cfg(f"{name}.{tag}")]
    ]


def argument_rows() -> list[tuple[str, str]]:
    """The arguments that the smallest net of each timm module can be built with, by module."""
    return [(module, _arguments(row)) for module, row in sorted(table.smallest_encoders().items())]


def _arguments(row: Encoder) -> str:
    stride = int(row.reductions.split("/")[0])
    taken = []
    for name in EncoderArguments.model_fields:
        try:
            net = _build(row.name, **{name: PROBES.get(name, 2 * stride)})
        except (AssertionError, TypeError):
            continue
        if name == "patch_size" and (
            row.blocks == "0" or {*net.feature_info.reduction()} != {2 * stride}
        ):
            continue
        taken.append(name)
    return _joined(taken)


def _tags(name: str) -> list[str]:
    """The tags of a name that have weights, the default first."""
    cfgs = timm.models.get_arch_pretrained_cfgs(name)
    return [key.split(".", 1)[1] for key, cfg in cfgs.items() if cfg.has_weights and "." in key]


def _build(name: str, *, device: str = "meta", **arguments: Any) -> Any:
    """A features-only timm net, in eval mode, its parameters frozen."""
    with _quietly(device):
        net = timm.create_model(name, features_only=True, **arguments)
    return net.eval().requires_grad_(False)


@contextlib.contextmanager
def _quietly(device: str = "meta") -> Iterator[None]:
    """A context in which nets are built on a device, without warnings."""
    if device == "meta":
        with sketched():
            yield
    else:
        with torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def _reads_numbers(net: Any, size: Size) -> bool:
    """Whether what the net does depends on numbers, which the meta device does not have."""
    try:
        net(_image(net, size))
    except RuntimeError as error:
        return "meta tensors" in str(error)
    except (AssertionError, ValueError):
        pass
    return False


def _run(net: Any, size: Size) -> tuple[list[Size], bool]:
    """The feature maps' sizes for an input of `size`, and whether the net has attention.

    A map of size (0, 0) stands for each level of a net that the meta device cannot run.
    """
    channel_last = getattr(net, "output_fmt", None) == "NHWC"
    axes = slice(1, 3) if channel_last else slice(2, 4)
    with _AttentionDetector() as detector:
        try:
            features = net(_image(net, size))
        except RuntimeError:
            return [(0, 0)] * len(net.feature_info.reduction()), detector.found
    return [tuple(feature.shape[axes]) for feature in features], detector.found


def _image(net: nn.Module, size: Size) -> Tensor:
    """An input that requires a gradient, so that everything computed from it does too."""
    device = next(net.parameters()).device
    return torch.zeros(1, 3, *size, device=device, requires_grad=True) * 1


class _AttentionDetector(TorchFunctionMode):
    """Notes products of two matrices that both depend on the input, which attention is made of."""

    products = frozenset(
        [
            torch.nn.functional.scaled_dot_product_attention,
            torch.matmul,
            torch.bmm,
            torch.einsum,
            Tensor.matmul,
            Tensor.bmm,
            Tensor.__matmul__,
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self.products:
            operands = [value for value in args if isinstance(value, Tensor)]
            self.found |= sum(operand.requires_grad for operand in operands) > 1
        return func(*args, **(kwargs or {}))


def _kind(net: nn.Module, has_attention: bool) -> str:
    """`transformer` or `hybrid` for a net with attention, else `cnn`, or `mlp` without either."""
    convolutions = [
        module
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
        and (max(module.kernel_size) == 1 or module.kernel_size != module.stride)
    ]  # without those that cut the image into patches
    if not has_attention:
        spatial = any(max(module.kernel_size) > 1 for module in convolutions)
        return "cnn" if spatial else "mlp"
    convolved = sum(p.numel() for conv in convolutions for p in conv.parameters(recurse=False))
    fraction = convolved / max(sum(p.numel() for p in net.parameters()), 1)
    return "hybrid" if fraction >= CONV_FRACTION else "transformer"


def _resizes(name: str, net: Any) -> str:
    """What the net takes: see `Encoder.resizes`."""
    stride = max(net.feature_info.reduction())
    one, other = (-(-side // stride) * stride for side in SIDES)
    squares: list[Size] = [(one, one), (other, other)]
    sizes = [*squares, (one, other), (other, one)]
    if all(_accepts(net, size) for size in squares):
        return "any"
    with contextlib.suppress(TypeError):
        dynamic = _build(name, dynamic_img_size=True)
        if all(_accepts(dynamic, size) for size in sizes):
            return "dynamic"
    with contextlib.suppress(TypeError):
        if all(_accepts_built(name, size) for size in squares):
            fits = all(_accepts_built(name, size) for size in sizes[2:])
            return "rectangle" if fits else "img_size"
    return "no"


def _accepts_built(name: str, size: Size) -> bool:
    """Whether the net takes images of `size` when it is built for them.

    For a rectangle timm must also resample pretrained weights.
    """
    if size[0] == size[1]:
        return _accepts(_build(name, img_size=size), size)
    with _quietly():
        state = timm.create_model(name).state_dict()
    overlay = {"state_dict": state}
    try:
        net = _build(name, img_size=size, pretrained=True, pretrained_cfg_overlay=overlay)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return _accepts(net, size)


def _accepts(net: Any, size: Size) -> bool:
    try:
        net(_image(net, size))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def _dilates(name: str, stride: int, size: Size) -> bool:
    """Whether timm builds the net at this output stride and its deepest features have it."""
    try:
        net = _build(name, output_stride=stride)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        return False
    sizes, _ = _run(net, size)
    return sizes[-1] == _reduced(size, stride)


def _blocks(name: str, size: Size) -> tuple[int, int]:
    """How many blocks and prefix tokens of the whole net can be read, (0, 0) where none can."""
    with _quietly():
        net = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    prefix_tokens = getattr(net, "num_prefix_tokens", 0)
    options = {"return_prefix_tokens": True} if prefix_tokens else {}
    try:
        net.forward_intermediates(_image(net, size), indices=4, intermediates_only=True, **options)
    except (AssertionError, RuntimeError, TypeError):
        return 0, 0
    return len(net.feature_info), prefix_tokens


def _reduced(size: Size, stride: int) -> Size:
    return size[0] // stride, size[1] // stride


def _joined(values: Iterable[object]) -> str:
    return "/".join(str(value) for value in values)


def write_tables() -> None:
    """Measure every timm net and write both tables beside the code that reads them; minutes."""
    names = timm.list_models()
    rows = [measure(name) for name in track(names, "timm nets", len(names))]
    write_text(FOLDER / table.MODELS_FILE, _csv(Encoder._fields, rows))
    write_text(FOLDER / table.WEIGHTS_FILE, _csv(Weights._fields, weight_rows()))
    write_text(FOLDER / ARGUMENTS_FILE, _csv(("module", "arguments"), argument_rows()))


def _csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    stream = io.StringIO()
    stream.write(f"# Generated by `{COMMAND}` from timm {timm.__version__}\n")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def check_tables(sample: int | None = None, seed: int = 0) -> list[str]:
    """Where the tables differ from the installed timm; `sample` nets are measured again, or all.

    Names, tags, statistics and licenses are always compared for every net.
    """
    listed, installed = table.encoders(), timm.list_models()
    wrong = []
    if table.timm_version() != timm.__version__:
        wrong.append(f"made from timm {table.timm_version()}, installed is {timm.__version__}")
    if missing := [name for name in installed if name not in listed]:
        wrong.append(f"{len(missing)} encoders are missing: {shortened(missing, 5)}")
    if gone := [name for name in listed if name not in set(installed)]:
        wrong.append(f"{len(gone)} encoders are no longer in timm: {shortened(gone, 5)}")
    if list(table.weights().values()) != (rows := weight_rows()):
        different = {f"{row.name}.{row.tag}" for row in {*rows} ^ {*table.weights().values()}}
        wrong.append(f"weights differ: {shortened(sorted(different), 5) or 'their order'}")
    if sample is None:
        found = {module: names.split("/") if names else [] for module, names in argument_rows()}
        if differ := [module for module in found if found[module] != accepted().get(module)]:
            wrong.append(f"arguments differ: {shortened(differ, 5)}")
    common = [name for name in installed if name in listed]
    chosen = common if sample is None else random.Random(seed).sample(common, sample)
    for name in track(chosen, "timm nets", len(chosen)):
        wrong += [
            f"{name}: {column} is {old!r} in the table, {new!r} in timm"
            for column, old, new in zip(Encoder._fields, listed[name], measure(name), strict=True)
            if old != new
        ]
    return [f"{text}. Run `{COMMAND}`." for text in wrong]


def check_registry(sample: int | None = 25) -> list[str]:
    """Everything that is wrong with the registry that comes with zoo and with its tables.

    `sample` nets are measured again, all where it is None.
    """
    try:
        registry = load_registry()
    except InputError as error:
        return [str(error)]
    known, problems = table.encoders().values(), []
    for name, row in registry.decoders.items():
        if (row.needs is None) != (row.smp is None):
            problems.append(f"decoders.{name}: needs belongs to SMP's classes, and only to them")
            continue
        accepted = defaults(name).keys()
        for key in sorted({*row.args}.union(*(case.args for case in row.cases)) - accepted):
            problems.append(f"decoders.{name}: its class has no argument {key!r}")
        if row.needs and all(adapted(name, row, encoder) for encoder in known):
            problems.append(f"decoders.{name}: no encoder has what it needs")
    rules = [*enumerate(registry.rules)]
    first = {next(n for n, rule in rules if matches(rule.where, encoder)) for encoder in known}
    for index, _ in rules:
        if index not in first:
            problems.append(f"encoders[{index}]: is the first match of no encoder")
    for name in [*registry.models, *registry.renamed.values()]:
        if not (model := resolve(name)).supported:
            problems.append(f"models.{name}: {model.reason}")
    return problems + check_tables(sample)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m zoo.checks.encoder_table", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="measure all nets, write the tables")
    action.add_argument("--check", action="store_true", help="compare the tables with timm")
    parser.add_argument("--sample", type=int, help="how many nets --check measures, default all")
    options = parser.parse_args(arguments)
    if options.write:
        write_tables()
        info(f"Wrote {table.MODELS_FILE} and {table.WEIGHTS_FILE} in {FOLDER}.")
        return 0
    wrong = check_tables(options.sample)
    for text in wrong:
        print(text)
    info("The tables differ from timm." if wrong else "The tables fit the installed timm.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
