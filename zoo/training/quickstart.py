"""The main job on an embedded data set: fine-tune, evaluate on unseen scenes, show the result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.common.console import info
from zoo.common.errors import InputError

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.records.record import Record

MODEL = "unet-resnet18"
RECIPE = "quickstart"
PICTURES = 8


def quickstart(out: Path) -> str:
    """Fine-tune unet-resnet18 on generated street scenes and leave everything below `out`.

    Writes data/, run/ (with best/, curves, pictures/), results/ (the record), leaderboard.md and
    report.html; returns what to print. Starts from pretrained weights where the Hub answers within
    seconds, else from random ones. Raises InputError where `out` already holds something.
    """
    from zoo.common.files import write_text
    from zoo.data.scenes import write_scenes
    from zoo.evaluation.evaluate import evaluate, write_result
    from zoo.leaderboard import build
    from zoo.records.record import record_text
    from zoo.training.finetune import finetune
    from zoo.training.report import report

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty. Give another --out.")
    began = time.monotonic()
    data = write_scenes(out / "data")
    info(f"Generated street scenes are in {data}.")
    run = out / "run"
    finetune(MODEL, data, recipe=RECIPE, out=run, encoder_weights=_encoder_weights())
    record = write_result(evaluate(_best(run), data, split="test"), out / "results")
    write_text(run / "eval.json", record_text(record))
    write_pictures(run, data)
    page = report(run, out / "report.html")
    build.write(out / "results", out)
    return _summary(record, out, page, time.monotonic() - began)


def _encoder_weights() -> str | None:
    """The tag's own weights where the Hub answers, else None with a remark."""
    from zoo.creation.create import DEFAULT
    from zoo.hub.encoders import hub_answers
    from zoo.registry.resolve import resolve

    hub_id = resolve(MODEL).hub_id
    if hub_id is not None and hub_answers(hub_id):
        return DEFAULT
    info("The Hugging Face Hub does not answer: the encoder starts from random weights.")
    return None


def _best(run: Path) -> SegmentationModel:
    from zoo.hub.folder import load_folder

    return load_folder(run / "best")


def write_pictures(run: Path, data: Path) -> list[Path]:
    """Image, truth and prediction of some test scenes side by side, into `run`/pictures."""
    from zoo.data.load import load_dataset
    from zoo.data.pixels.masks import read_pair
    from zoo.data.pixels.overlay import comparison, save_png
    from zoo.inference.predictor import predict_mask

    dataset = load_dataset(data)
    model = _best(run).eval()
    files = []
    for sample in dataset.samples("test")[:PICTURES]:
        image, truth = read_pair(sample, dataset)
        predicted = predict_mask(model, image)
        picture = comparison(image, truth, predicted, dataset.classes, dataset.palette)
        files.append(run / "pictures" / f"{sample.name}.png")
        save_png(picture, files[-1])
    return files


def _summary(record: Record, out: Path, page: Path, seconds: float) -> str:
    ious = {name: v for name, v in record.metrics.iou_per_class.items() if v is not None}
    worst = min(ious, key=lambda name: ious[name])
    return "\n".join(
        [
            f"mIoU {100 * record.metrics.miou:.1f} % on {record.images} scenes never seen, "
            f"lowest class {worst} {100 * ious[worst]:.1f} %, {seconds:.0f} s in all.",
            f"report       {page}",
            f"leaderboard  {out / 'leaderboard.md'}",
            f"pictures     {out / 'run' / 'pictures'}",
            f"model        {out / 'run' / 'best'}",
        ]
    )
