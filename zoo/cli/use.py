"""The verbs that use a trained model: `zoo eval`, `zoo predict` and `zoo export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli import (
    DATA_HELP,
    BackendOption,
    BackgroundOption,
    BatchSizeOption,
    BlendOption,
    CompileOption,
    DataOption,
    FoldOption,
    JsonOption,
    OverlapOption,
    OverwriteOption,
    PrecisionOption,
    TtaOption,
    WindowOption,
)
from zoo.common.console import info, print_line, show
from zoo.common.errors import InputError, escaped, number_of
from zoo.creation.locate import check_trained
from zoo.runtime.precision import check_precision

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset

TrainedArgument = Annotated[
    str, typer.Argument(help="A run or model folder, hf-hub:ORG/REPO, or a trained name.")
]


def _load(data: str, split: str | None) -> Dataset:
    """The data set, whose split is looked for before torch is imported."""
    from zoo.data.load import load_dataset

    dataset = load_dataset(data)
    if dataset.described and split is not None:  # else the run may know how it was divided
        dataset.samples(split, masks=False)
    return dataset


def eval_command(
    model: TrainedArgument,
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder to write the record into.")] = None,
    precision: PrecisionOption = "fp32",
    backend: BackendOption = "auto",
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold BatchNorm into the convolutions before it.")
    ] = False,
    window: WindowOption = "auto",
    overlap: OverlapOption = None,
    blend: BlendOption = "auto",
    tta: TtaOption = "none",
    as_json: JsonOption = False,
) -> None:
    """Score MODEL once on a split of DATA, at the images' own resolution."""
    check_precision(precision)
    check_trained(model, exported=True)
    dataset = _load(data, split)
    from zoo.evaluation.evaluate import evaluate
    from zoo.records.metrics import METRICS

    found = evaluate(
        model, dataset, split=split, out=out, precision=precision, backend=backend, fold=fold,
        window=window, overlap=overlap, blend=blend, tta=tta,
    )  # fmt: skip
    settings = found.predictor.settings
    if as_json:
        print_line(json.dumps(found.metrics | settings, indent=2))
    else:
        show(found.confusion.table())
        shown = [metric for metric in METRICS if metric.report and not metric.per_class]
        values = [f"{metric.title} {100 * found.metrics[metric.key]:.2f} %" for metric in shown]
        print_line(
            f"{', '.join(values)} on "
            f"{number_of(len(found.per_image), 'image')} of {found.dataset.name}, "
            f"split {found.split}, in {found.precision}"
            + ("" if settings["backend"] == "torch" else f", by {settings['backend']}")
            + ("" if settings["tta"] == "none" else f", test-time augmentation {settings['tta']}")
        )


def predict_command(
    model: TrainedArgument,
    out: Annotated[Path, typer.Option(help="Folder for masks/, overlays/ and other files.")],
    inputs: Annotated[list[str] | None, typer.Argument(help="Images, folders or patterns.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Instead of images: a split of the run's data, or of --data.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help=f"With --split: {DATA_HELP}")] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="A kind of file to write, such as index or geojson, repeatable; default: palette "
            "and overlay. docs/predict.md lists them.",
        ),
    ] = None,
    min_area: Annotated[int, typer.Option(help="Remove connected components of fewer pixels.")] = 0,
    background: BackgroundOption = "auto",
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    fold: FoldOption = True,
    compile: CompileOption = False,
    window: WindowOption = "auto",
    overlap: OverlapOption = None,
    blend: BlendOption = "auto",
    tta: TtaOption = "none",
    batch_size: BatchSizeOption = None,
) -> None:
    """Segment images: masks, coloured overlays with a legend, and other files."""
    from zoo.inference.outputs import SAVE, check_kinds, check_min_area

    kinds = list(dict.fromkeys(save or SAVE))
    check_kinds(kinds)
    check_min_area(min_area)
    check_precision(precision)
    check_trained(model, exported=True)
    dataset = None if data is None else _load(data, split)
    for given in inputs or []:
        if not set(given) & set("*?[") and not Path(given).exists():
            raise InputError(
                f"{given} is not an image, a folder with images or a pattern: nothing is there."
            )
    from zoo.inference.predictor import predict

    for prediction in predict(
        model, inputs, out=out, split=split, data=dataset, background=background,
        overwrite=overwrite, precision=precision, save=kinds, min_area=min_area, backend=backend,
        fold=fold, compile=compile, window=window, overlap=overlap, blend=blend, tta=tta,
        batch_size=batch_size,
    ):  # fmt: skip
        made = prediction.files.items()
        files = [path for kind, path in made if kind != "json" or kind in kinds]
        print_line("\t".join(escaped(path) for path in files))
        sys.stdout.flush()  # each as it is done, also into a pipe


def export_command(
    model: TrainedArgument,
    format: Annotated[str, typer.Option(help="onnx, openvino or torch-export.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: the model's name.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HxW, the only size to take, or dynamic (default, where it can be)."),
    ] = None,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Take pixels and normalise them inside the file.")
    ] = False,
    argmax: Annotated[
        bool, typer.Option("--argmax", help="Give class ids in the place of logits.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights and activations of 8 bits; needs --calibrate.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(help=f"With --int8: where their ranges are taken from, train: {DATA_HELP}"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help=f"Compare mIoU on a split of it, too: {DATA_HELP}")
    ] = None,
    split: Annotated[str, typer.Option(help="With --data: the split.")] = "val",
    overwrite: OverwriteOption = False,
) -> None:
    """Write MODEL as a file for another runtime, compared with the model before it is kept."""
    from zoo.exporting.formats import find_format, packages_for

    packages_for(find_format(format), int8, calibrate)
    check_trained(model)
    dataset = None if data is None else _load(data, split)
    images = None if calibrate is None else _load(calibrate, None)
    from zoo.exporting.export import export

    found = export(
        model, format, out, size=size, uint8=uint8, argmax=argmax, int8=int8, calibrate=images,
        data=dataset, split=split, overwrite=overwrite,
    )  # fmt: skip
    if (calibration := found.described.calibration) is not None:
        info(
            f"int8, calibrated on {number_of(calibration.images, 'image')} of {calibration.data}, "
            f"split {calibration.split}"
        )
    for one in found.described.parity:
        logits = ""
        if one.cosine is not None:
            logits = f"cosine {one.cosine:.6f}, largest difference {one.max_difference:.1e}, "
        size_words = f"{one.height}x{one.width}" + ("" if one.seen else " (not seen at export)")
        info(f"{size_words}: {logits}{100 * one.equal:.3f} % of pixels equal")
    if (scores := found.described.scores) is not None:
        info(
            f"mIoU {100 * scores.miou:.2f} %, of the model {100 * scores.torch_miou:.2f} %, on "
            f"{number_of(scores.images, 'image')} of {scores.data}, split {scores.split}"
        )
    print_line(f"{escaped(found.path)}\t{escaped(found.json)}")
