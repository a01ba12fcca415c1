"""Runs every decoder on the smallest net of every timm module and keeps what it showed."""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from zoo.common.console import track
from zoo.common.errors import InputError
from zoo.common.files import write_text
from zoo.hub.folder import load_folder, save_folder
from zoo.models.build import build, in_smp
from zoo.models.meta import Undrawn
from zoo.models.outputs import MaskOutputs, Outputs, pixel_logits
from zoo.models.spec import ModelSpec, model_spec
from zoo.registry import encoders as table
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import Encoder, Pair, encoders, smallest_encoders
from zoo.registry.load import load_registry
from zoo.registry.resolve import resolve

FILE = Path(table.__file__).parent / table.COVERAGE_FILE
SIZE = (150, 203)
"""Height and width in pixels, multiples of nothing that a net asks for."""

CLASSES = 3
LIBRARIES = ("timm", "segmentation-models-pytorch", "torch")


def wanted(module: str = "*", decoder: str = "*") -> list[tuple[Encoder, str]]:
    """The smallest encoder of every module with every decoder, both chosen by patterns.

    Decoders that take only some encoders (`takes` in the decoder table) are left out elsewhere.

    Raises InputError where nothing matches.
    """
    smallest, rows = smallest_encoders(), load_registry().decoders
    pairs = [
        (smallest[name], key)
        for name in sorted(smallest)
        for key in DECODERS
        if fnmatchcase(name, module)
        and fnmatchcase(key, decoder)
        and rows[key].refuses(smallest[name]) is None
    ]
    if not pairs:
        raise InputError(
            f"No pair of a timm module {module!r} and a decoder {decoder!r}. The modules are those "
            "of timm.models, the decoders those of `zoo list`."
        )
    return pairs


def versions(names: Iterable[str] = LIBRARIES) -> str:
    """The versions of libraries, by default of those that decide what works."""
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)


def run_all(
    pairs: Iterable[tuple[Encoder, str]], *, rerun: bool = False, file: Path = FILE
) -> list[Pair]:
    """Run the pairs that `file` does not have from these versions, or all; returns their rows.

    The file is written after every pair, so that a stopped run goes on where it was.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    valid = text.partition("\n")[0].endswith(f" with {versions()}")
    rows = {(row.module, row.decoder): row for row in table.parse_coverage(text)} if valid else {}
    asked = list(pairs)
    todo = [(e, d) for e, d in asked if rerun or (e.module, d) not in rows]
    for encoder, decoder in track(todo, "pairs", len(todo)):
        rows[encoder.module, decoder] = run_pair(encoder, decoder)
        write_text(file, table.format_coverage(list(rows.values()), versions()))
    return [rows[encoder.module, decoder] for encoder, decoder in asked]


def differences(count: int, seed: int = 0, module: str = "*", decoder: str = "*") -> list[str]:
    """Where the table that ships differs from the installed libraries; `count` pairs are run."""
    wrong = []
    if table.coverage_versions() != versions():
        wrong.append(f"made with {table.coverage_versions()}; installed are {versions()}")
    listed, pairs = table.covered_pairs(), wanted(module, decoder)
    if missing := sum((encoder.module, key) not in listed for encoder, key in pairs):
        wrong.append(f"{missing} of {len(pairs)} pairs are missing")
    known = [pair for pair in pairs if (pair[0].module, pair[1]) in listed]
    chosen = random.Random(seed).sample(known, min(count, len(known)))
    for encoder, key in track(chosen, "pairs", len(chosen)):
        found, said = run_pair(encoder, key), listed[encoder.module, key]
        if found != said:
            wrong.append(f"{key}-{encoder.name}: the table has {said[3:]}, this run {found[3:]}")
    return wrong


def listed(module: str = "*", decoder: str = "*") -> list[Pair]:
    """What the table that ships says of the pairs that the patterns choose."""
    known = table.covered_pairs()
    places = ((encoder.module, key) for encoder, key in wanted(module, decoder))
    return [known[place] for place in places if place in known]


def run_pair(encoder: Encoder, decoder: str) -> Pair:
    """Build, train, store and load the pair, and keep the first thing that fails."""
    model = resolve(f"{decoder}-{encoder.name}")
    path = "smp" if model.adapted is None else "adapter"
    problem = ""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            _exercise(describe(encoder, decoder))
        except Exception as error:  # whatever a net raises is what the table is for
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return Pair(encoder.module, encoder.name, decoder, path, problem)


def describe(encoder: Encoder, decoder: str) -> ModelSpec:
    """A model of the pair with random weights, at the encoder's own size where it has one."""
    return model_spec(resolve(f"{decoder}-{encoder.name}"), CLASSES)


class PairError(Exception):
    """A pair runs but does not do what it should."""


def _exercise(spec: ModelSpec) -> None:
    """Raise where a batch of one does not train, or a stored model differs when it is loaded.

    What says that plain SMP can load it is loaded there too.
    """
    model = build(spec)
    for parameter in model.parameters():
        if not parameter.any():  # those that start at zero hide what lies behind them
            nn.init.normal_(parameter, std=0.1)
    images = torch.randn(1, spec.in_chans, *SIZE)
    outputs = model.train().training_outputs(images)
    if isinstance(outputs, Outputs):
        learned = [outputs.logits, *(auxiliary.logits for auxiliary in outputs.auxiliary)]
    else:
        learned = [pixel_logits(outputs) if isinstance(outputs, MaskOutputs) else outputs]
    torch.stack([tensor.float().square().mean() for tensor in learned]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    if without:
        raise PairError(f"{len(without)} parameters without gradient, such as {without[0]}")
    gradients = [p.grad for n, p in model.named_parameters() if n.startswith("net.encoder.")]
    if not any(grad is not None and grad.any() for grad in gradients):
        raise PairError("the gradient of the whole encoder is zero")
    model.zero_grad()
    model.eval().requires_grad_(False)  # torch's kernels may round otherwise where it is True
    passes: list[tuple[Tensor, Tensor]] = []
    hook = model.net.register_forward_hook(
        lambda _, images, logits: passes.append((images[0], logits))
    )
    logits = model(images)
    hook.remove()
    for given, found in passes:
        if found.shape[-2:] != given.shape[-2:]:  # it would be resized
            height, width = found.shape[-2:]
            raise PairError(f"the network gives logits of {height} x {width} pixels")
    if logits.shape != (1, CLASSES, *SIZE):
        raise PairError(f"logits of shape {tuple(logits.shape)}")
    with torch.autocast("cpu", torch.bfloat16):
        if not torch.isfinite(model(images)).all():
            raise PairError("logits under bf16 are not finite")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        save_folder(model, folder)
        quiet = contextlib.redirect_stdout(io.StringIO())  # the Hub's client says that it loads
        with quiet, Undrawn(), torch.no_grad():
            if not torch.equal(logits, load_folder(folder).eval().requires_grad_(False)(images)):
                raise PairError("a loaded model gives other logits than the stored one")
            if in_smp(spec):
                theirs = smp.from_pretrained(str(folder)).eval().requires_grad_(False)
                given, found = passes[0]
                if not torch.equal(theirs(given), found):
                    raise PairError("plain SMP gives other logits from the stored model")


def summary(rows: list[Pair]) -> list[str]:
    """How many pairs work, decoder by decoder and in all, what is left out, and what fails."""
    lines, left_out = [], []
    for decoder in dict.fromkeys(row.decoder for row in rows):
        own = [row for row in rows if row.decoder == decoder]
        lines.append(f"{decoder:<16}{_share(own)}")
        refused = sum(
            DECODERS[decoder].refuses(encoder) is not None for encoder in encoders().values()
        )
        if refused:
            left_out.append(
                f"{decoder} leaves out {refused} of {len(encoders())} architectures: "
                f"{DECODERS[decoder].why}"
            )
    lines += [f"{'all':<16}{_share(rows)}", *left_out]
    return lines + [f"{row.decoder}-{row.encoder}: {row.problem}" for row in rows if row.problem]


def _share(rows: list[Pair]) -> str:
    working = [row for row in rows if not row.problem]
    adapted = sum(row.path == "adapter" for row in working)
    return f"{len(working)} of {len(rows)} work, {adapted} of these through the adapter"
