"""The verbs that use a trained model: `zoo eval` and `zoo predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import (
    DATA_HELP,
    BackgroundOption,
    DataOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
)
from zoo.common.console import print_line, show
from zoo.common.errors import escaped

TrainedArgument = Annotated[
    str, typer.Argument(help="A run or model folder, hf-hub:ORG/REPO, or a trained name.")
]


def eval_command(
    model: TrainedArgument,
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder to write the record into.")] = None,
    precision: PrecisionOption = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Score MODEL once on a split of DATA, at the images' own resolution."""
    from zoo.evaluation.evaluate import evaluate
    from zoo.records.metrics import METRICS

    found = evaluate(model, data, split=split, precision=precision, out=out)
    if as_json:
        print_line(json.dumps(found.metrics | {"precision": found.precision}, indent=2))
    else:
        show(found.confusion.table())
        shown = [metric for metric in METRICS if metric.report and not metric.per_class]
        values = [f"{metric.title} {100 * found.metrics[metric.key]:.2f} %" for metric in shown]
        print_line(
            f"{', '.join(values)} on "
            f"{len(found.dataset.samples(found.split))} images of {found.dataset.name}, "
            f"split {found.split}, in {found.precision}"
        )


def predict_command(
    model: TrainedArgument,
    out: Annotated[Path, typer.Option(help="Folder for masks/ and overlays/.")],
    inputs: Annotated[list[str] | None, typer.Argument(help="Images, folders or patterns.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Instead of images: a split of the run's data, or of --data.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help=f"With --split: {DATA_HELP}")] = None,
    background: BackgroundOption = "auto",
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = "auto",
) -> None:
    """Segment images: index masks and coloured overlays with a legend."""
    from zoo.inference.predictor import BrokenImagesError, predict

    failure = None
    try:
        found = predict(
            model, inputs, out=out, split=split, data=data, background=background,
            overwrite=overwrite, precision=precision,
        )  # fmt: skip
    except BrokenImagesError as error:
        found, failure = list(error.predictions), error
    for prediction in found:
        files = (prediction.mask_file, prediction.overlay_file)
        print_line("\t".join(escaped(path) for path in files))
    if failure is not None:
        raise failure
