"""The formats that a model is exported to: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.common.errors import InputError, unknown


@dataclass(frozen=True)
class Format:
    """A file format: `suffixes` of its files, the main one first; `packages` that it needs.

    `opens` is what runs such files.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    opens: str


FORMATS = {
    row.name: row
    for row in (
        Format(
            "onnx",
            "ONNX",
            (".onnx",),
            ("onnx", "onnxscript", "onnxruntime"),
            "ONNX Runtime, OpenVINO, TensorRT, Triton",
        ),
        Format(
            "openvino",
            "OpenVINO IR",
            (".xml", ".bin"),
            ("onnx", "onnxscript", "openvino"),
            "OpenVINO on CPUs, GPUs and NPUs of Intel",
        ),
        Format("torch-export", "torch.export", (".pt2",), (), "torch.export.load"),
    )
}


def find_format(name: object) -> Format:
    """The row of a format. Raises InputError for a name that is none."""
    row = FORMATS.get(name) if isinstance(name, str) else None
    if row is None:
        raise InputError(unknown("format", str(name), FORMATS))
    return row
