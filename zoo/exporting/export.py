"""Writing a trained model as a file for another runtime, once it is seen to give the same."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, type_words
from zoo.common.files import OutputFolder, json_text, scratch_folder, sha256
from zoo.common.schema import plain_value
from zoo.creation.create import load_trained
from zoo.data.dataset import Dataset
from zoo.evaluation.evaluate import scored_data
from zoo.exporting.formats import Format, find_format, packages_for
from zoo.exporting.quantise import CalibrationImages, quantised_onnx, quantised_openvino
from zoo.exporting.scores import check_scores, split_scores
from zoo.hub.folder import known_training
from zoo.inference.exported import (
    ExportedFile,
    FileEntry,
    GraphNetwork,
    Port,
    Precision,
    Session,
    import_runtime,
    json_of,
    onnx_session,
    openvino_session,
    program_session,
)
from zoo.inference.graphs import (
    INPUT,
    Graph,
    GraphOptions,
    graph_size,
    quiet,
    to_onnx,
    to_program,
)
from zoo.inference.parity import checked
from zoo.models.build import weights_id
from zoo.models.layers import in_eval_mode
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec
from zoo.runtime.environment import versions

MOST_SIDE = 2**14


@dataclass(frozen=True)
class Export:
    """A finished export: `path` of the file, `json` beside it, and what that says."""

    path: Path
    json: Path
    described: ExportedFile


def export(
    model: str | Path | SegmentationModel,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    size: str | int | tuple[int, int] | None = None,
    uint8: bool = False,
    argmax: bool = False,
    int8: bool = False,
    calibrate: str | Path | Dataset | None = None,
    data: str | Path | Dataset | None = None,
    split: str = "val",
    overwrite: bool = False,
) -> Export:
    """Write a trained model as a file for another runtime, with a JSON beside it that describes it.

    `model`: a run folder, a model folder, a repository, a name that stands for trained weights, or
    a model. `format`: onnx, openvino or torch-export. `out` is the file, by default the model's
    name in the working directory. The file takes a batch of images of any height and width, or of
    `size`, "HxW" or (H, W), only; a model with windows of a fixed size takes that size only. It
    takes what the encoder was trained on, (pixel / 255 - mean) / std, float32; with `uint8`
    pixels. It gives logits; with `argmax` class ids, uint8 B x H x W. With `int8` its weights and
    activations have 8 bits, in ranges that are taken from the train split of `calibrate`.

    The file is run and compared with the model in fp32 before it is put in place, at its size and
    at three others, and on a `split` of `data` if that is given: mIoU may differ by 0.1 % there. A
    file of int8 is compared on images of `calibrate` that its ranges were not taken from, and may
    lose 1 % of mIoU.
    Raises InputError for arguments that do not fit and where a file that zoo did
    not write would be replaced (unless `overwrite`), RunError where the model cannot be exported
    or the file gives something else than the model.
    """
    row = find_format(format)
    packages = packages_for(row, int8, calibrate)
    for package in packages:
        import_runtime(package, row.title)
    asked = parse_size(size)
    loaded = load_trained(model)
    fixed = graph_size(loaded.spec, asked, given=size is not None)
    options = GraphOptions(size=fixed, uint8=uint8, argmax=argmax)
    images = None
    if calibrate is not None:
        images = CalibrationImages(loaded, model, calibrate, row.name)
    dataset = None if data is None else scored_data(loaded, model, data, split)
    path = _output(loaded.spec, row, out)
    names = [path.with_suffix(suffix).name for suffix in row.suffixes]
    target = OutputFolder(
        path.parent, [*names, json_of(path).name], overwrite=overwrite, shared=True
    )
    info(f"Exporting {loaded.spec.name} to {row.title}; this takes seconds to minutes.")
    with _scratch(path) as scratch, in_eval_mode(loaded):
        draft = scratch / path.name
        opset = WRITERS[row.name](Graph(loaded, options), draft, images)
        precision: Precision = "fp32" if images is None else "int8"
        network = GraphNetwork(row.name, _session(row, draft), loaded.spec, options, precision)
        what = f"The {row.title} file" + ("" if images is None else " of int8")
        parity = checked(
            loaded, network, what, None if images is None else images.compared(options)
        )
        scores = None
        if dataset is not None:
            scores = split_scores(loaded, network, dataset, split)
            check_scores(scores, precision, f"{what} of {loaded.spec.name}")
        described = ExportedFile(
            format=row.name,  # type: ignore[arg-type]
            files=[_entry(scratch / name) for name in names],
            spec=loaded.spec,
            weights=weights_id(loaded.net.state_dict()),
            training=known_training(loaded),
            precision=precision,
            calibration=None if images is None else images.described,
            input=_input(loaded.spec, options),
            output=_output_port(loaded.spec, options),
            normalises=uint8,
            argmax=argmax,
            opset=opset,
            parity=parity,
            scores=scores,
            versions=versions() | {package: metadata.version(package) for package in packages},
        )
        contents = {name: (scratch / name).read_bytes() for name in names}
        text = json_text(described.model_dump(mode="json", by_alias=True))
        _put(target, contents | {json_of(path).name: text.encode()})
    return Export(path, json_of(path), described)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder for drafts where `path` will lie. Raises RunError where none can be made."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = scratch_folder(path.parent, f".{path.name[:200]}.zoo-")
            scratch = stack.enter_context(folder)
        except OSError as error:
            raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
        yield scratch


def _put(target: OutputFolder, contents: dict[str, bytes]) -> None:
    """Write all files; none of them stays where one cannot be written."""
    written: list[Path] = []
    try:
        for name, content in contents.items():
            written.append(target.write(name, content))
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise


def parse_size(size: object) -> tuple[int, int] | None:
    """Height and width in pixels of "HxW", of a number (a square) or of two; None for "dynamic".

    Raises InputError for anything else.
    """
    given = plain_value(size)
    if given is None or given == "dynamic":
        return None
    match = (
        re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", given) if isinstance(given, str) else None
    )
    sides = given if isinstance(given, list) else [given]
    if match is not None:
        sides = [int(match[1]), int(match[2] or match[1])]
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MOST_SIDE for side in sides):
        raise InputError(
            f"size should be dynamic, or height x width in pixels such as 512x768, from 1 to "
            f"{MOST_SIDE} each, got {type_words(size)}."
        )
    return sides[0], sides[1]


def _output(spec: ModelSpec, row: Format, out: str | Path | None) -> Path:
    """The path of the file. Raises InputError for one that ends otherwise."""
    suffix = row.suffixes[0]
    if out is None:
        return Path(f"{spec.name}{suffix}")
    if not isinstance(out, str | Path) or not str(out) or "\0" in str(out):
        raise InputError(f"out should be a path, got {type_words(out)}.")
    path = Path(out)
    if path.suffix != suffix:
        raise InputError(
            f"{row.title} files end in {suffix}: give --out {path.name or 'model'}{suffix} or the "
            f"like, not {path}."
        )
    return path


def _write_onnx(graph: Graph, path: Path, images: CalibrationImages | None) -> int:
    content = to_onnx(graph)
    if images is not None:
        content = quantised_onnx(content, graph, images, path.parent)
    path.write_bytes(content)
    return _opset(content)


def _opset(content: bytes) -> int:
    onnx = import_runtime("onnx", "ONNX")
    (found,) = [
        entry.version
        for entry in onnx.load_from_string(content).opset_import
        if entry.domain in ("", "ai.onnx")
    ]
    return int(found)


def _write_openvino(graph: Graph, path: Path, images: CalibrationImages | None) -> int:
    content = to_onnx(graph)
    openvino = import_runtime("openvino", "OpenVINO")
    model = openvino.Core().read_model(content)
    if images is not None:
        model = quantised_openvino(model, graph, images)
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return _opset(content)


def _write_program(graph: Graph, path: Path, images: CalibrationImages | None) -> None:
    assert images is None  # refused before
    with quiet():
        torch.export.save(to_program(graph), path)


WRITERS: dict[str, Callable[[Graph, Path, CalibrationImages | None], int | None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch-export": _write_program,
}
"""What writes a graph in each format, in int8 where there are images; returns ONNX's opset."""


def _session(row: Format, path: Path) -> Session:
    """The runtime of a format, with the file that was just written."""
    if row.name == "onnx":
        return onnx_session(path)
    if row.name == "openvino":
        return openvino_session(path, "fp32")
    with quiet():
        return program_session(torch.export.load(path))


def _entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, sha256=sha256(path), bytes=path.stat().st_size)


def _input(spec: ModelSpec, options: GraphOptions) -> Port:
    sides: list[str | int] = list(options.size or ("height", "width"))
    return Port(
        name=INPUT,
        dtype="uint8" if options.uint8 else "float32",
        shape=["batch", spec.in_chans, *sides],
    )


def _output_port(spec: ModelSpec, options: GraphOptions) -> Port:
    sides: list[str | int] = list(options.size or ("height", "width"))
    planes: list[str | int] = [] if options.argmax else [len(spec.classes)]
    return Port(
        name=options.output,
        dtype="uint8" if options.argmax else "float32",
        shape=["batch", *planes, *sides],
    )
