"""`zoo quickstart`: fine-tune on generated scenes, evaluate on unseen ones, show the result."""

from __future__ import annotations

import time
from pathlib import Path

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import write_bytes, write_text
from zoo.creation.create import DEFAULT
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import png
from zoo.data.scenes import write_scenes
from zoo.evaluation.evaluate import write_result
from zoo.evaluation.pictures import compared
from zoo.hub.encoders import hub_answers
from zoo.leaderboard import build
from zoo.records.record import record_text
from zoo.registry.resolve import resolve
from zoo.training.finetune import finetune
from zoo.training.report import measure, report

MODEL = "unet-resnet18"
RECIPE = "quickstart"
SHOWN = 8
"""How many test scenes are shown with their predictions."""


def quickstart(out: Path) -> str:
    """Fine-tune unet-resnet18 on generated street scenes and write everything below `out`.

    Writes data/, run/ (with best/, curves, pictures/), results/ (the record), leaderboard.md and
    report.html; returns the text to print. Starts from pretrained weights if the Hub answers within
    seconds, else from random ones. Raises InputError if `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty. Give another --out.")
    start = time.monotonic()
    data = write_scenes(out / "data")
    info(f"Generated street scenes are in {data}.")
    hub_id = resolve(MODEL).hub_id
    weights = DEFAULT if hub_id is not None and hub_answers(hub_id) else None
    if weights is None:
        info("The Hugging Face Hub does not answer: the encoder starts from random weights.")
    run = out / "run"
    finetune(MODEL, data, recipe=RECIPE, out=run, encoder_weights=weights)
    dataset, best = load_dataset(data), run / "best"
    measured = measure(best, dataset, "test")
    record = write_result(measured.evaluation, out / "results")
    write_text(run / "eval.json", record_text(record))
    shown = dataset.samples("test")[:SHOWN]
    for sample, picture in compared(measured.evaluation.predictor, dataset, shown):
        write_bytes(run / "pictures" / f"{sample.name}.png", png(picture))
    page = report(run, out / "report.html", measured=measured)
    build.write(out / "results", out)
    ious = {name: iou for name, iou in record.metrics.iou_per_class.items() if iou is not None}
    lowest = min(ious, key=lambda name: ious[name])
    return "\n".join(
        [
            f"mIoU {100 * record.metrics.miou:.1f} % on {record.images} unseen scenes, "
            f"lowest class {lowest} {100 * ious[lowest]:.1f} %, "
            f"{time.monotonic() - start:.0f} s in total.",
            f"report       {page}",
            f"leaderboard  {out / 'leaderboard.md'}",
            f"images       {run / 'pictures'}",
            f"model        {run / 'best'}",
        ]
    )
