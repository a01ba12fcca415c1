"""The commands: parse, call the package, print. Here are the options that several verbs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

DATA_HELP = "A folder, a dataset.yaml, or FORMAT:PATH (camvid:PATH)."

DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
DataArgument = Annotated[str, typer.Argument(help=DATA_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")]
BackendOption = Annotated[
    str, typer.Option(help="torch, onnxruntime, openvino or auto (torch; of a file, its own).")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Recipe values, key=value; options of the decoder, model.KEY=value.",
        metavar="[KEY=VALUE]...",
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that zoo did not write or that were changed."),
]
BackgroundOption = Annotated[
    str,
    typer.Option(
        help="The class left unpainted: name, id, none, or auto (the one called background)."
    ),
]
RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="An overlay file; default: $ZOO_REGISTRY.")
]


def plain(value: object) -> str:
    """A value in a cell of a table: text as it is, `-` for None, JSON for the rest."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, default=str)
