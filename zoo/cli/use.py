"""The verbs that use a trained model: `zoo eval` and `zoo predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import DataOption, JsonOption, PrecisionOption
from zoo.common.console import print_line, show

TrainedArgument = Annotated[
    str, typer.Argument(help="A run or model folder, hf-hub:ORG/REPO, or a trained name.")
]


def eval_command(
    model: TrainedArgument,
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder to write the record into.")] = None,
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score MODEL once on a split of DATA, at the images' own resolution."""
    from zoo.evaluation.evaluate import evaluate
    from zoo.records.metrics import METRICS

    found = evaluate(model, data, split=split, precision=precision, out=out)
    if as_json:
        print_line(json.dumps(found.metrics, indent=2))
    else:
        show(found.confusion.table())
        shown = [metric for metric in METRICS if metric.report and not metric.per_class]
        values = [f"{metric.title} {100 * found.metrics[metric.key]:.2f} %" for metric in shown]
        print_line(
            f"{', '.join(values)} on "
            f"{len(found.dataset.samples(found.split))} images of {found.dataset.name}, "
            f"split {found.split}"
        )


def predict_command(
    model: TrainedArgument,
    inputs: Annotated[list[str], typer.Argument(help="Images, folders or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for masks/ and overlays/.")],
    precision: PrecisionOption = "auto",
) -> None:
    """Segment images: index masks and coloured overlays with a legend."""
    from zoo.inference.predictor import predict

    for prediction in predict(model, inputs, out=out, precision=precision):
        print_line(f"{prediction.mask_file}\t{prediction.overlay_file}")
