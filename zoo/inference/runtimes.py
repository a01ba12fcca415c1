"""A model run by ONNX Runtime or OpenVINO without a file: its graph is made once and kept."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, unknown
from zoo.common.files import hash_of, write_bytes
from zoo.inference.exported import (
    GraphNetwork,
    onnx_precision,
    onnx_session,
    openvino_precision,
    openvino_session,
)
from zoo.inference.graphs import Graph, GraphOptions, to_onnx
from zoo.inference.parity import checked
from zoo.models.build import weights_id
from zoo.models.segmentation import SegmentationModel
from zoo.runtime.memory import cache_folder

BACKENDS = ("torch", "onnxruntime", "openvino")
KEPT = 8
"""How many graphs stay in the cache."""


def runtime_network(model: SegmentationModel, backend: str, precision: str) -> GraphNetwork:
    """The network of a model in ONNX Runtime or OpenVINO on the CPU.

    `precision`: fp32, for OpenVINO also bf16, or auto. The graph of a model that was not run so
    before is made and compared with the model first, which takes seconds to minutes; it is kept in
    $ZOO_CACHE/graphs. Raises InputError for a backend or precision that is not there, RunError
    where torch cannot export the model or the graph differs from it.
    """
    if backend == "onnxruntime":
        precision = onnx_precision(precision)
    elif backend == "openvino":
        precision = openvino_precision(precision)
    else:
        raise InputError(unknown("backend", backend, BACKENDS))
    options = GraphOptions(size=model.spec.window)

    def network(content: bytes, precision: str) -> GraphNetwork:
        session = (
            onnx_session(content)
            if backend == "onnxruntime"
            else openvino_session(content, precision)
        )
        return GraphNetwork(backend, session, model.spec, options, precision)

    kept = _place(model, backend)
    content = kept.read_bytes() if kept.is_file() else None
    if content is None:
        info(f"Preparing {model.spec.name} for {backend}, once; this takes seconds to minutes.")
        try:
            content = to_onnx(Graph(model, options))
        except RunError as error:
            raise RunError(f"{error} Or use --backend torch (backend=).") from error
        checked(model, network(content, "fp32"), f"The graph for {backend}")
        write_bytes(kept, content)
        _forget(kept.parent)
    return network(content, precision)


def _place(model: SegmentationModel, backend: str) -> Path:
    """Where the graph of a model is kept; other weights or versions have another place."""
    versions = {name: metadata.version(name) for name in ("torch", "onnxscript", "timm")}
    known = [backend, weights_id(model.net.state_dict()), model.spec.model_dump(mode="json")]
    return cache_folder() / "graphs" / f"{hash_of([*known, versions])}.onnx"


def _forget(folder: Path) -> None:
    """Delete the oldest graphs."""
    graphs = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
    for path in graphs[:-KEPT]:
        path.unlink(missing_ok=True)
