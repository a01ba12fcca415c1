"""The formats that a model is exported to: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.common.errors import InputError, unknown


@dataclass(frozen=True)
class Format:
    """A file format: `suffixes` of its files, the main one first; `packages` that it needs.

    `opens` is what runs such files. `int8_packages` are needed besides for int8, None: there is no
    int8.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    int8_packages: tuple[str, ...] | None
    opens: str


FORMATS = {
    row.name: row
    for row in (
        Format(
            "onnx",
            "ONNX",
            (".onnx",),
            ("onnx", "onnxscript", "onnxruntime"),
            (),
            "ONNX Runtime, OpenVINO, TensorRT, Triton",
        ),
        Format(
            "openvino",
            "OpenVINO IR",
            (".xml", ".bin"),
            ("onnx", "onnxscript", "openvino"),
            ("nncf",),
            "OpenVINO on CPUs, GPUs and NPUs of Intel",
        ),
        Format("torch-export", "torch.export", (".pt2",), (), None, "torch.export.load"),
    )
}


def find_format(name: object) -> Format:
    """The row of a format. Raises InputError for a name that is none."""
    row = FORMATS.get(name) if isinstance(name, str) else None
    if row is None:
        raise InputError(unknown("format", str(name), FORMATS))
    return row


def packages_for(row: Format, int8: bool, calibrate: object) -> list[str]:
    """The packages that a file of this format needs, with or without int8.

    Raises InputError where `int8`, which takes images to `calibrate` on, and they do not go
    together.
    """
    if int8 and row.int8_packages is None:
        formats = [name for name, other in FORMATS.items() if other.int8_packages is not None]
        raise InputError(
            f"int8 (--int8) goes with the formats {' and '.join(formats)}, not with {row.name}."
        )
    if int8 and calibrate is None:
        raise InputError(
            "int8 (--int8) takes its ranges from training images: give --calibrate DATA "
            "(calibrate=), the data set that the model was trained on."
        )
    if calibrate is not None and not int8:
        raise InputError("calibrate (--calibrate) goes with --int8 (int8=True): give both or none.")
    return [*row.packages, *(row.int8_packages or () if int8 else ())]
