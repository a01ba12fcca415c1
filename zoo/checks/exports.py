"""Exports every decoder on an encoder of every family to every format and keeps what it showed."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from zoo.checks import coverage
from zoo.common.console import track
from zoo.common.errors import InputError, RunError, ZooError, join_problems, printable
from zoo.common.files import write_text
from zoo.exporting import table
from zoo.exporting.formats import FORMATS
from zoo.exporting.table import COMMAND, DYNAMIC, FAMILIES, Cell
from zoo.inference.exported import (
    GraphNetwork,
    Parity,
    Session,
    onnx_session,
    openvino_session,
    program_session,
)
from zoo.inference.graphs import Graph, GraphOptions, to_onnx, to_program
from zoo.inference.parity import checked
from zoo.models.build import build
from zoo.models.segmentation import SegmentationModel
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import Encoder, encoders

FILE = Path(table.__file__).parent / table.TABLE_FILE
RECORDING_S = 40
"""How long torch.export may record a pair; those that it finishes take it some seconds."""
LIBRARIES = ("onnx", "onnxscript", "onnxruntime", "openvino")


def wanted(only: str = "*") -> list[tuple[str, Encoder, str]]:
    """Family, encoder and decoder of every pair whose name, DECODER-ENCODER, fits a pattern.

    Pairs that no decoder builds are left out. Raises InputError where nothing matches.
    """
    known = encoders()
    pairs = [
        (family, known[name], key)
        for family, name in FAMILIES.items()
        for key, row in DECODERS.items()
        if fnmatchcase(f"{key}-{name}", only) and row.refuses(known[name]) is None
    ]
    if not pairs:
        raise InputError(
            f"No pair {only!r}. Pairs are DECODER-ENCODER, a pattern such as 'unet-*'; the "
            f"encoders are {', '.join(FAMILIES.values())}."
        )
    return pairs


def versions() -> str:
    """The libraries that decide what can be exported."""
    return coverage.versions((*coverage.LIBRARIES, *LIBRARIES))


def run_all(
    pairs: Iterable[tuple[str, Encoder, str]], *, rerun: bool = False, file: Path = FILE
) -> list[Cell]:
    """Export the pairs that `file` does not have from these versions, or all; returns their rows.

    The file is written after every pair, so that a stopped run goes on where it was.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows = {}
    if table.made_with(text) == versions():
        rows = {(row.encoder, row.decoder, row.format): row for row in table.parse(text)}
    asked = list(pairs)
    todo = [
        pair for pair in asked
        if rerun or any((pair[1].name, pair[2], name) not in rows for name in FORMATS)
    ]  # fmt: skip
    for pair in track(todo, "pairs", len(todo)):
        for row in run_pair(*pair):
            rows[row.encoder, row.decoder, row.format] = row
        write_text(file, table.as_text(list(rows.values()), versions()))
    return [rows[encoder.name, key, name] for _, encoder, key in asked for name in FORMATS]


def differences(count: int, seed: int = 0, only: str = "*") -> list[str]:
    """Where the table that ships differs from the installed libraries; `count` pairs are run.

    Numbers and messages may differ between machines; what works, and at which sizes, may not.
    """
    wrong = []
    made = table.made_with(table.text())
    if made != versions():
        wrong.append(f"made with {made}; installed are {versions()}")
    pairs = wanted(only)
    said = {(row.encoder, row.decoder, row.format): row for row in table.shipped()}
    places = [(encoder.name, key, name) for _, encoder, key in pairs for name in FORMATS]
    if missing := sum(place not in said for place in places):
        wrong.append(f"{missing} of {len(places)} cells are missing")
    for pair in track(random.Random(seed).sample(pairs, min(count, len(pairs))), "pairs", count):
        for row in run_pair(*pair):
            known = said.get((row.encoder, row.decoder, row.format))
            if known is not None and (known.status, known.size) != (row.status, row.size):
                wrong.append(
                    f"{row.decoder}-{row.encoder}, {row.format}: the table has {known.status} "
                    f"{known.size}, this run {row.status} {row.size} {row.problem}".rstrip()
                )
    return wrong


def run_pair(family: str, encoder: Encoder, decoder: str) -> list[Cell]:
    """Export the pair to every format, at every size or else at one, and compare with the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(coverage.describe(encoder, decoder)).eval()
    size = model.spec.example_size()
    fixed = model.spec.window
    found = _try_all(model, fixed, set(FORMATS))
    failed = {name for name, result in found.items() if isinstance(result, str)}
    again = _try_all(model, size, failed) if failed and fixed is None else {}
    cells = []
    for name in FORMATS:
        first, second = found[name], again.get(name)
        result = first if second is None or isinstance(second, str) else second
        at = size if fixed is not None or result is second else None
        reason = next((words for words in (second, first) if isinstance(words, str)), "")
        measured = ("", "") if isinstance(result, str) else result
        status = "blocked" if isinstance(result, str) else "validated"
        words = "" if status == "blocked" else DYNAMIC if at is None else "{}x{}".format(*at)
        cells.append(
            Cell(family, encoder.name, decoder, name, status, words, *measured, problem=reason)
        )
    return cells


def _try_all(
    model: SegmentationModel, size: tuple[int, int] | None, formats: set[str]
) -> dict[str, tuple[str, str] | str]:
    """Least equal fraction and largest difference of each format, or why there is none.

    All share one recording, ONNX and OpenVINO one conversion.
    """
    graph = Graph(model, GraphOptions(size=size))
    try:
        program = to_program(graph, RECORDING_S)
    except RunError as error:
        return dict.fromkeys(formats, _reason(error))
    onnx = functools.cache(lambda: to_onnx(graph, program))
    sessions: dict[str, Callable[[], Session]] = {
        "onnx": lambda: onnx_session(onnx()),
        "openvino": lambda: openvino_session(onnx(), "fp32"),
        "torch-export": lambda: program_session(program),
    }
    found: dict[str, tuple[str, str] | str] = {}
    for name in formats:
        try:
            network = GraphNetwork(name, sessions[name](), model.spec, graph.options, "fp32")
            measured = _measured(checked(model, network, "The graph"))
        except Exception as error:  # whatever an exporter raises is what the table is for
            found[name] = _reason(error)
        else:
            found[name] = measured
    return found


def _measured(parity: list[Parity]) -> tuple[str, str]:
    difference = max(one.max_difference or 0 for one in parity)
    return f"{min(one.equal for one in parity):.6f}", f"{difference:.1e}"


def _reason(error: BaseException) -> str:
    """What was raised first, in one line; of what differs, the first size."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [printable(line).strip(" -") for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ZooError):
        return lines[1 if len(lines) > 1 else 0]
    return f"{type(error).__name__}: {' '.join(lines)}"[:200]


def summary(rows: list[Cell]) -> list[str]:
    """How many pairs work in each format, and what is blocked."""
    lines = []
    for name in FORMATS:
        own = [row for row in rows if row.format == name]
        valid = [row for row in own if row.status == "validated"]
        dynamic = sum(row.size == DYNAMIC for row in valid)
        lines.append(
            f"{name:<16}{len(valid)} of {len(own)} validated, {dynamic} of these with dynamic sizes"
        )
    blocked = [row for row in rows if row.status == "blocked"]
    return lines + [f"{r.decoder}-{r.encoder}, {r.format}: {r.problem}" for r in blocked]


def check(sample: int, only: str) -> list[str]:
    """The summary of the table that ships. Raises InputError where it does not hold here."""
    if wrong := differences(sample, only=only):
        header = f"The table of exports does not match this installation; run `{COMMAND}`:"
        raise InputError(join_problems(header, wrong))
    names = {f"{key}-{encoder.name}" for _, encoder, key in wanted(only)}
    return summary([row for row in table.shipped() if f"{row.decoder}-{row.encoder}" in names])
