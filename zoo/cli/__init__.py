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
FoldOption = Annotated[
    bool,
    typer.Option(" /--no-fold", help="Leave BatchNorm apart from the convolutions before it."),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the network: faster after a minute, GPUs only.")
]
WindowOption = Annotated[
    str,
    typer.Option(
        help="Sliding windows: their side in pixels as the network sees them, none, or auto for "
        "images of more than 4 megapixels."
    ),
]
OverlapOption = Annotated[
    float | None,
    typer.Option(
        help="Fraction of a window that it shares with the next; 0.25 by default.",
        show_default=False,
    ),
]
BlendOption = Annotated[
    str, typer.Option(help="How windows are joined: cut, gaussian or auto (by the model).")
]
TtaOption = Annotated[
    str,
    typer.Option(help="Test-time augmentation: none, flip, or flip and scales: flip,0.75,1.25."),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Images of one size that are predicted at once; by their size by default.",
        show_default=False,
    ),
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
