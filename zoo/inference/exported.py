"""Exported files: what the JSON beside them says, and the runtimes that run them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from zoo.common.errors import InputError, RunError, extra, join_problems, printable, unknown
from zoo.common.files import check_file, read_json, sha256
from zoo.common.schema import Strict
from zoo.creation.locate import EXPORTED
from zoo.hub.config import check_spec
from zoo.inference.graphs import INPUT, GraphOptions
from zoo.models.outputs import resized
from zoo.models.segmentation import normalise, padded_to, rescaled
from zoo.models.spec import ModelSpec

SCHEMA = 1
MAX_JSON_BYTES = 4_000_000
Count = Annotated[int, Field(ge=1)]
Precision = Literal["fp32", "int8"]
Method = Literal["minmax", "nncf", "smoothquant"]
"""What makes int8: ONNX Runtime, OpenVINO's NNCF, or NNCF after SmoothQuant (arXiv 2211.10438)."""
Axes = Annotated[list[str | Count], Field(min_length=3, max_length=4)]


class FileEntry(Strict):
    """One file of an export: its name beside the JSON, its SHA-256, its bytes."""

    name: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class Port(Strict):
    """The input or output of a graph; dynamic axes are named, the others are numbers."""

    name: str
    dtype: Literal["float32", "uint8"]
    shape: Axes


class Parity(Strict):
    """How far an exported file is from the torch model in fp32, on `batch` images of one size.

    `seen` is whether the graph was recorded at this size. `cosine` and `max_difference` are of the
    logits, None where the file gives ids; `equal` is the fraction of pixels with the same class.
    """

    batch: Count
    height: Count
    width: Count
    seen: bool
    cosine: float | None
    max_difference: float | None
    equal: Annotated[float, Field(ge=0, le=1)]


class SplitScores(Strict):
    """mIoU of an exported file and of the torch model in fp32 on a split, as fractions."""

    data: str
    data_hash: str
    split: str
    images: Count
    miou: float
    torch_miou: float


class Calibration(Strict):
    """What the ranges of an int8 file were taken from: images of a split, chosen evenly.

    `data_hash` is that of the whole split.
    """

    data: str
    data_hash: str
    split: str
    images: Count
    method: Method


class ExportedFile(Strict):
    """What the JSON beside an exported file says.

    `spec` and `training` are those of the model folder, `weights` names its weights. `normalises`
    is whether the graph takes pixels, uint8, and normalises them; else it takes what `spec.mean`
    and `spec.std` make of them. `argmax` is whether it gives class ids. `opset` is that of ONNX.
    `calibration` is there where `precision` is int8. `scores` are those on a split, if given.
    """

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    format: Literal["onnx", "openvino", "torch-export"]
    files: Annotated[list[FileEntry], Field(min_length=1, max_length=2)]
    spec: ModelSpec
    weights: Annotated[str, Field(max_length=100)]
    training: dict[str, Any] | None
    precision: Precision = "fp32"
    calibration: Calibration | None = None
    input: Port
    output: Port
    normalises: bool
    argmax: bool
    opset: Count | None
    parity: list[Parity]
    scores: SplitScores | None = None
    versions: dict[str, str]

    @property
    def options(self) -> GraphOptions:
        """What its graph holds besides the network."""
        height, width = self.input.shape[-2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        size = (int(height), int(width)) if fixed else None
        return GraphOptions(size, self.normalises, self.argmax)


def json_of(path: Path) -> Path:
    """The JSON that lies beside an exported file."""
    return path.with_suffix(".json")


def read_exported(path: Path) -> ExportedFile:
    """What the JSON beside an exported file says, once the file is what it describes.

    Raises InputError where there is no file or no JSON, and where the two do not belong together.
    """
    beside = json_of(path)
    try:
        check_file(path)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not beside.is_file():
        raise InputError(
            f"{path} has no {beside.name} beside it, which says what its classes and its input "
            "are. Files that `zoo export` wrote have one: copy it to the same folder, or export "
            "the model again."
        )
    given = read_json(beside, MAX_JSON_BYTES)
    try:
        found = ExportedFile.model_validate_json(json.dumps(given))
    except (ValidationError, ValueError, RecursionError) as error:
        errors = error.errors() if isinstance(error, ValidationError) else []
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in errors]
        header = f"{beside} is not what `zoo export` writes beside a file:"
        raise InputError(join_problems(header, lines or [str(error)], 5)) from error
    check_spec(found.spec, str(beside))
    if found.files[0].name != path.name:
        raise InputError(f"{beside} describes {found.files[0].name}, not {path.name}.")
    for entry in found.files:
        file = path.with_name(entry.name)
        if not file.is_file():
            raise InputError(f"{path} needs {entry.name} beside it, which is not there.")
        if file.stat().st_size != entry.bytes or sha256(file) != entry.sha256:
            raise InputError(
                f"{file} is not the file that {beside.name} describes: it was changed, or is of "
                "another model. Export the model again."
            )
    return found


class Session(Protocol):
    """What runs a graph: arrays in, arrays out."""

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """The output of the graph for images B x C x H x W of its own type."""
        ...


class GraphNetwork:
    """An exported graph as the `Network` of a model.

    With `ids_only` the graph gives class ids: calls return them as one-hot logits, from which no
    probabilities can be had.
    """

    device = torch.device("cpu")
    folded = True

    def __init__(
        self, backend: str, session: Session, spec: ModelSpec, options: GraphOptions, precision: str
    ):
        self.backend, self.precision, self.spec = backend, precision, spec
        self.session, self.options = session, options
        self.size, self.ids_only = options.size, options.argmax

    @torch.inference_mode()
    def __call__(self, images: Tensor, factor: float) -> Tensor:
        """Logits, float32 B x K x h x w, of uint8 images B x C x H x W resized by `factor`.

        Images smaller than a fixed size are padded to it. Raises InputError for larger ones.
        """
        options = self.options
        pixels = images if factor == 1 else rescaled(images.float(), factor)
        scaled = (pixels.shape[-2], pixels.shape[-1])
        if options.size is not None:
            if scaled[0] > options.size[0] or scaled[1] > options.size[1]:
                raise InputError(
                    f"This file takes images of {options.size[0]}x{options.size[1]} pixels only, "
                    f"got {scaled[0]}x{scaled[1]}."
                )
            pixels = padded_to(pixels.float(), 1, options.size)
        if options.uint8:
            given = pixels.round().clamp(0, 255).to(torch.uint8) if pixels is not images else images
        else:
            given = normalise(pixels, self.spec, "cpu")
        found = torch.from_numpy(self.session(given.contiguous().numpy()))
        self._check(found)
        if options.argmax:
            found = _as_logits(found, len(self.spec.classes))
        if options.size is not None:
            found = resized(found, options.size)[..., : scaled[0], : scaled[1]]
        return found

    def _check(self, found: Tensor) -> None:
        """Raise InputError where the graph gives something else than its description says."""
        classes = len(self.spec.classes)
        if self.options.argmax:
            right = found.ndim == 3 and found.dtype == torch.uint8
            right = right and int(found.max()) < max(2, classes)
        else:
            right = found.ndim == 4 and found.shape[1] == classes
        if not right:
            what = "class ids" if self.options.argmax else "logits"
            kind, shape = str(found.dtype).removeprefix("torch."), tuple(found.shape)
            raise InputError(
                f"The file gives {kind} of the shape {shape}, no {what} of {classes} as the number "
                "of classes."
            )


def _as_logits(ids: Tensor, classes: int) -> Tensor:
    """Logits whose best class is `ids`, B x H x W; of one class, above 0 where the id is 1."""
    if classes == 1:
        return ids.unsqueeze(1).float() * 2 - 1
    return torch.nn.functional.one_hot(ids.long(), classes).movedim(-1, 1).float()


def onnx_session(content: bytes | Path) -> Session:
    """A session of ONNX Runtime on the CPU, with as many threads as torch has.

    Raises InputError for a file that is not an ONNX model.
    """
    runtime = import_runtime("onnxruntime", "ONNX Runtime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    source = content if isinstance(content, bytes) else str(content)
    try:
        session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds have no common public base
        raise InputError(f"ONNX Runtime cannot open {_named(content)}: {_first(error)}") from error

    def run(images: NDArray[Any]) -> NDArray[Any]:
        try:
            found: NDArray[Any] = session.run(None, {INPUT: images})[0]
        except Exception as error:
            raise RunError(f"ONNX Runtime failed: {_first(error)}") from error
        return found

    return run


def import_runtime(module: str, title: str) -> Any:
    """A module of the extra `export`, imported so that its telemetry sends nothing.

    openvino and nncf report their import to Google Analytics, except in continuous integration
    (CI=true). Raises InputError where it is not installed; `title` is what needs it.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        return extra(module, "export", title)
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def openvino_precision(precision: str) -> str:
    """What `precision` means to OpenVINO on this CPU: bf16 where auto finds it, else fp32.

    Raises InputError for fp16, and for bf16 on a CPU without it.
    """
    openvino = import_runtime("openvino", "OpenVINO")
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    allowed = ["fp32", *(["bf16"] if has_bf16 else [])]
    if precision not in allowed:
        raise InputError(f"OpenVINO on this CPU runs in {' or '.join(allowed)}, not {precision}.")
    return precision


def openvino_session(content: bytes | Path, precision: str) -> Session:
    """A session of OpenVINO on the CPU, with as many threads as torch has.

    `content` is an ONNX model or the path of an .xml; `precision` is fp32 or bf16. Raises
    InputError for a file that is no model.
    """
    openvino = import_runtime("openvino", "OpenVINO")
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        model = core.read_model(content if isinstance(content, bytes) else str(content))
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot open {_named(content)}: {_first(error)}") from error

    def run(images: NDArray[Any]) -> NDArray[Any]:
        try:
            return np.array(compiled(images)[0])
        except RuntimeError as error:
            raise RunError(f"OpenVINO failed: {_first(error)}") from error

    return run


def program_session(program: torch.export.ExportedProgram) -> Session:
    """A graph of torch.export, run by torch."""
    module: Any = program.module(check_guards=False)

    def run(images: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = module(torch.from_numpy(images)).numpy()
        return found

    return run


def _named(content: bytes | Path) -> str:
    return "the model" if isinstance(content, bytes) else str(content)


def _first(error: Exception) -> str:
    """The first line of a runtime's message."""
    return printable(str(error).strip().partition("\n")[0])[:300]


def open_exported(
    path: Path, precision: str = "auto", backend: str = "auto"
) -> tuple[GraphNetwork, ExportedFile]:
    """The network of an exported file, and what its JSON says.

    `backend`: onnxruntime or openvino, which both take ONNX; auto is the file's own. `precision` is
    that of a file of fp32, and of what an int8 file leaves in floating point: its network states
    int8, or int8+bf16. Raises InputError for a file that cannot be run, and for a precision that
    its runtime lacks.
    """
    if path.suffix not in EXPORTED:
        raise InputError(unknown("kind of exported file", path.suffix, EXPORTED))
    if path.suffix == ".pt2":
        raise InputError(
            f"{path} is a file of torch.export, which can hold code; zoo runs no code out of "
            "files. Load it by torch.export.load if you trust it, or use --format onnx."
        )
    if backend == "torch" or (path.suffix == ".xml" and backend == "onnxruntime"):
        raise InputError(f"{path} is not run by {backend}. Leave out --backend (backend=).")
    found = read_exported(path)
    if path.suffix == ".onnx" and backend != "openvino":
        backend, resolved = "onnxruntime", onnx_precision(precision)
        session = onnx_session(path)
    else:
        backend, resolved = "openvino", openvino_precision(precision)
        session = openvino_session(path, resolved)
    if found.precision == "int8":
        resolved = "int8" if resolved == "fp32" else f"int8+{resolved}"
    network = GraphNetwork(backend, session, found.spec, found.options, resolved)
    _try_out(network, path)
    return network, found


def _try_out(network: GraphNetwork, path: Path) -> None:
    """Raise InputError where a graph does not take or give what the JSON beside it says."""
    sides = network.size or (2 * network.spec.size_multiple,) * 2
    try:
        network(torch.zeros((1, network.spec.in_chans, *sides), dtype=torch.uint8), 1.0)
    except (InputError, RunError) as error:
        raise InputError(
            f"{path} is not what {json_of(path).name} beside it describes: {error} Export the "
            "model again."
        ) from error


def onnx_precision(precision: str) -> str:
    """ONNX Runtime computes in fp32 on a CPU. Raises InputError for another precision."""
    if precision not in ("auto", "fp32"):
        raise InputError(f"ONNX Runtime runs in fp32 here, not {precision}.")
    return "fp32"
