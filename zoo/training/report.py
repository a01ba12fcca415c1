"""Run reports: one self-contained HTML page about a finished or unfinished run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.common.class_lists import default_palette
from zoo.common.console import info
from zoo.common.errors import InputError, join_problems, number_of
from zoo.common.files import OutputFolder, read_json
from zoo.common.html import data_url, render
from zoo.data.dataset import Dataset, Sample
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import webp
from zoo.data.split import as_recorded, dataset_of_run, recorded_data
from zoo.evaluation.counts import most_frequent
from zoo.records.hashed import describe
from zoo.records.metrics import METRICS
from zoo.records.record import read_record
from zoo.training.charts import curves, latest, read_log, svg
from zoo.training.score_charts import MOST_CLASSES, confusion_chart, reliability_chart

if TYPE_CHECKING:
    from zoo.evaluation.calibration import Calibration
    from zoo.evaluation.evaluate import Evaluation
    from zoo.inference.predictor import Predictor

MAX_PICTURES = 24
"""How many images of RUN/pictures one page holds; further ones are counted, not shown."""
SHOWN = 4
"""How many of the best images, of the worst and of the others a page shows."""
PAIRS = 12
"""How many pairs of classes are named."""
LONGEST = 320
"""The longest side in pixels of each panel of an image."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NONE = "\u2013"
_STATES = {"finished": "finished", "early": "stopped early", "interrupted": "interrupted"}

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Byte = Annotated[int, Field(ge=0, le=255)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class DataFile(_Lenient):
    """The `data` part of run.json."""

    name: str
    classes: list[str]
    palette: list[tuple[Byte, Byte, Byte]] | None = None


class RunFile(_Lenient):
    """What the report reads of run.json, which training writes when it starts."""

    model: str
    data: DataFile
    recipe: dict[str, Any]
    recipe_name: str
    overrides: dict[str, Any] | list[str]
    seed: int
    encoder_init: str
    encoder_weights: str | None
    env: dict[str, Any]


class ResultFile(_Lenient):
    """result.json, which training writes when it ends."""

    best_epoch: int | None
    best_miou: Fraction | None
    epochs: int
    steps: int
    seconds: float
    stopped: str
    precision: str | None = None


@dataclass(frozen=True)
class Measured:
    """A model's evaluation on a split, and how well it is calibrated there."""

    evaluation: Evaluation
    calibration: Calibration


def measure(model: str | Path, data: str | Path | Dataset, split: str) -> Measured:
    """Evaluate a model once, as `evaluate` does. Raises as that does."""
    from zoo.evaluation.calibration import Calibration
    from zoo.evaluation.evaluate import evaluate

    calibration = Calibration()
    found = evaluate(model, data, split=split, on_logits=calibration.add)
    return Measured(found, calibration)


@dataclass(frozen=True)
class _Scores:
    """What a page shows of an evaluation: `rows` are its facts in words."""

    split: str
    rows: dict[str, str]
    classes: Sequence[str]
    iou_per_class: Mapping[str, float | None]
    matrix: NDArray[np.int64]
    calibration: Calibration | None = None


def report(
    run: Path,
    out: Path | None = None,
    overwrite: bool = False,
    *,
    split: str | None = None,
    data: str | Path | Dataset | None = None,
    measured: Measured | None = None,
) -> Path:
    """Write the page about the run folder `run` to `out` (run/report.html) and return its path.

    The run may be in any state. With `split` its best model is evaluated on that split of `data`,
    by default of the data that it was trained on, and the page has its scores, best and worst
    images; `measured` is such an evaluation that was made before. Without them it has the scores of
    run/eval.json or of a record that `zoo eval --out` wrote into the run folder, and some images of
    val where the data is found. The page needs no other file and no network.

    Raises InputError where `run` is not a run folder, where one of its files is damaged, where
    `OutputFolder` refuses to replace `out`, and as `evaluate` does.
    """
    if not (run / "run.json").is_file():
        raise InputError(
            f"{run} is not a run folder: it holds no run.json. Give the folder that "
            "`zoo finetune --out` wrote."
        )
    out = out or run / "report.html"
    inputs = [path for path in run.rglob("*") if path.suffix != ".html"]
    target = OutputFolder(out.parent, [out.name], inputs=inputs, overwrite=overwrite, shared=True)
    facts, log = _read(run / "run.json", RunFile), read_log(run / "log.jsonl")
    result_file = run / "result.json"
    result = _read(result_file, ResultFile) if result_file.is_file() else None
    if split is not None:
        measured = measure(run, dataset_of_run(run) if data is None else data, split)
    scores = _scores_of_record(run) if measured is None else _scores(measured)
    epochs = latest(log, "epoch")
    best = next((event for event in reversed(epochs) if event.get("best")), None)

    if result is not None and (result.precision or not best):
        miou, precision = result.best_miou, result.precision
    else:
        miou, precision = (best.get("miou"), best.get("precision")) if best else (None, None)
    seconds = result.seconds if result else sum(event.get("seconds") or 0 for event in epochs)
    weights = f" ({facts.encoder_weights})" if facts.encoder_weights else ""
    summary = {
        "state": _STATES.get(result.stopped, result.stopped) if result else "not finished",
        "best mIoU on validation": _percent(miou, 2) + (f" ({precision})" if precision else ""),
        "best epoch": str(best["epoch"]) if best else _NONE,
        "epochs done": str(max((event["epoch"] for event in epochs), default=0)),
        "steps done": str(max((event["step"] for event in log), default=0)),
        "time": _duration(seconds),
        "seed": str(facts.seed),
        "encoder": facts.encoder_init + weights,
    }

    # the IoU of each class: in the evaluation, else in the best epoch
    names, classes = facts.data.classes, None
    ious: Mapping[str, float | None] | None
    if scores is not None:
        ious, measured_on = scores.iou_per_class, f"the {scores.split} split"
    elif best is not None:
        ious, measured_on = best.get("iou_per_class"), f"validation in epoch {best['epoch']}"
    if scores is not None or best is not None:
        colours = dict(zip(names, facts.data.palette or default_palette(len(names)), strict=False))
        rows = [(name, colours.get(name), _percent(iou, 1)) for name, iou in (ious or {}).items()]
        classes = {"measured_on": measured_on, "rows": rows}

    overrides = facts.overrides
    if isinstance(overrides, dict):
        overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    recipe = {"recipe": facts.recipe_name, "overrides": ", ".join(overrides) or "none"}

    pictures = sorted(path for path in (run / "pictures").glob("[!.]*.png") if path.is_file())
    galleries = [] if measured is None else _best_and_worst(measured.evaluation, not pictures)
    if pictures:
        galleries.append(("Images", [_stored(path) for path in pictures[:MAX_PICTURES]]))
    elif measured is None:
        galleries += _examples(run, data)

    text = render(
        "training/report.html",
        title=f"{facts.model} on {facts.data.name}",
        summary=summary,
        scores=scores,
        chart=Markup(svg(curves(log))) if log else None,
        classes=classes,
        confusion=Markup(svg(confusion_chart(scores.matrix, scores.classes))) if scores else None,
        most_classes=MOST_CLASSES,
        pairs=_pairs(scores) if scores else [],
        reliability=(
            Markup(svg(reliability_chart(scores.calibration)))
            if scores and scores.calibration
            else None
        ),
        galleries=galleries,
        more_images=max(len(pictures) - MAX_PICTURES, 0),
        recipe={**recipe, **dict(_flat(facts.recipe))},
        environment=facts.env,
    )
    return target.write(out.name, text.encode("utf-8"))


def _read(path: Path, kind: type[Model]) -> Model:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(join_problems(f"{path} has problems:", describe(error))) from error


def _scores(measured: Measured) -> _Scores:
    found, error = measured.evaluation, measured.calibration.ece
    chosen_on = found.predictor.training.get("chosen_on")
    too_good = ": its score is too good to report" if chosen_on == found.split else ""
    rows = {
        **_metric_rows(found.metrics),
        "expected calibration error": _percent(error, 2),
        "data": f"{found.dataset.name}, split {found.split}, "
        f"{number_of(len(found.per_image), 'image')}",
        "chosen on": (chosen_on or "nothing") + too_good,
        "device": f"{found.device}, {found.precision}",
    }
    return _Scores(
        found.split, rows, found.dataset.classes, found.metrics["iou_per_class"],
        found.confusion.matrix, measured.calibration,
    )  # fmt: skip


def _scores_of_record(run: Path) -> _Scores | None:
    """The scores of eval.json, else of the newest record in the folder, one of test before others.

    `zoo eval --out` names records DATA-SPLIT--MODEL--...; they may lie in a folder of the run.
    """
    files = [run / "eval.json"] if (run / "eval.json").is_file() else []
    files = files or [*run.glob("*--*--*.json"), *run.glob("[!.]*/*--*--*.json")]
    records = [read_record(path) for path in files]
    if not records:
        return None
    record = max(records, key=lambda one: (one.split == "test", one.date, one.record_hash or ""))
    size = "native sizes" if record.size is None else "{} x {} pixels".format(*record.size)
    if record.input_size is not None:
        size += ", network input {} x {}".format(*record.input_size)
    rows = {
        **_metric_rows(vars(record.metrics)),
        "data": f"{record.dataset}, split {record.split}, "
        f"{number_of(record.images, 'image')}, {size}",
        "data hash": record.data_hash,
        "chosen on": record.chosen_on or "nothing",
        "protocol": f"{record.protocol}, test-time augmentation {record.tta}",
        "device": f"{record.device}, {record.precision}",
        "record": str(record.record_hash),
    }
    matrix = np.array(record.confusion, np.int64)
    return _Scores(record.split, rows, record.classes, record.metrics.iou_per_class, matrix)


def _metric_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {
        metric.title: _percent(metrics[metric.key], 2)
        for metric in METRICS
        if metric.report and not metric.per_class
    }


def _pairs(scores: _Scores) -> list[tuple[str, str, str, str]]:
    """Label, prediction, pixels and fraction of the label: the errors of the most pixels."""
    errors = scores.matrix - np.diag(np.diag(scores.matrix))
    labels = scores.matrix.sum(axis=1)
    return [
        (
            scores.classes[label], scores.classes[predicted], f"{errors[label, predicted]:,}",
            _percent(errors[label, predicted] / labels[label], 2),
        )
        for label, predicted in most_frequent(errors)[:PAIRS]
    ]  # fmt: skip


Gallery = tuple[str, list[tuple[str, str]]]
"""A heading, and images with their captions."""


def _best_and_worst(found: Evaluation, with_others: bool) -> list[Gallery]:
    """The images of the lowest mIoU, those of the highest, and others that are evenly spaced."""
    from zoo.evaluation.pictures import image_mious

    samples = sorted(found.dataset.samples(found.split), key=lambda sample: sample.name)
    mious = image_mious(found.per_image)
    order = [index for index in np.argsort(mious, kind="stable").tolist() if mious[index] >= 0]
    worst = order[: min(SHOWN, -(-len(order) // 2))]
    best = order[len(worst) :][::-1][:SHOWN]
    rest = [index for index in range(len(samples)) if index not in {*worst, *best}]
    others = _spread(rest) if with_others else []
    captions = {
        sample.name: f"{sample.name}: mIoU {_percent(miou, 1)}"
        for sample, miou in zip(samples, mious.tolist(), strict=True)
    }
    galleries = []
    for title, chosen in (("Worst", worst), ("Best", best), ("Other", others)):
        if chosen:
            chosen_samples = [samples[index] for index in chosen]
            shown = _pictures(found.predictor, found.dataset, chosen_samples)
            images = [(captions[name], url) for name, url in shown]
            galleries.append((f"{title} images of {found.split}", images))
    return galleries


def _examples(run: Path, data: str | Path | Dataset | None) -> list[Gallery]:
    """Some images of val with the predictions of the run's best model, where the data is found."""
    known = (recorded_data(run) or {}).get("source")
    if not (run / "best").is_dir() or (data is None and known is None):
        return []
    from zoo.evaluation.evaluate import SCORING
    from zoo.inference.predictor import Predictor

    try:
        dataset = as_recorded(
            dataset_of_run(run) if data is None else load_dataset(data), run, "val"
        )
        samples = _spread(dataset.samples("val"))
        predictor = Predictor(run, **SCORING)
        return [("Images of val", _pictures(predictor, dataset, samples))]
    except InputError as error:
        if data is not None:
            raise
        info(f"The page has no images: {error}")
        return []


def _pictures(
    predictor: Predictor, dataset: Dataset, samples: Sequence[Sample]
) -> list[tuple[str, str]]:
    from zoo.evaluation.pictures import compared

    return [
        (sample.name, data_url(webp(picture), "webp"))
        for sample, picture in compared(predictor, dataset, samples, LONGEST)
    ]


def _spread(items: Sequence[T]) -> list[T]:
    """At most `SHOWN` of the items, evenly spaced."""
    step = max(1, len(items) // SHOWN)
    return list(items[::step][:SHOWN])


def _stored(path: Path) -> tuple[str, str]:
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise InputError(f"{path} is not a PNG image; remove it and make the report again.")
    return path.stem, data_url(content, "png")


def _flat(value: object, place: str = "") -> Iterable[tuple[str, str]]:
    """Nested values as dotted keys, a stage by its name: `stages.head.epochs`."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            rest = {key: part for key, part in item.items() if key != "name"}
            yield from _flat(rest, f"{place}.{item.get('name', index)}")
    else:
        yield place, value if isinstance(value, str) else json.dumps(value)


def _percent(fraction: float | None, digits: int) -> str:
    if fraction is None or not math.isfinite(fraction):
        return _NONE
    return f"{100 * fraction:.{digits}f} %"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
