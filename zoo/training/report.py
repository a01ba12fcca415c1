"""Run reports: one self-contained HTML page about a finished or unfinished run."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.common.class_lists import default_palette
from zoo.common.errors import InputError, join_problems
from zoo.common.files import OutputFolder, read_json
from zoo.common.html import render
from zoo.records.hashed import describe
from zoo.records.metrics import METRICS
from zoo.records.record import Record, read_record
from zoo.training.charts import curves, latest, read_log, svg

MAX_PICTURES = 24
"""How many images one page holds; further ones are counted, not shown."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NONE = "\u2013"
_STATES = {"finished": "finished", "early": "stopped early", "interrupted": "interrupted"}

T = TypeVar("T", bound=BaseModel)
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


def report(run: Path, out: Path | None = None, overwrite: bool = False) -> Path:
    """Write the page about the run folder `run` to `out` (run/report.html) and return its path.

    The run may be in any state. The page needs no other file and no network. Raises InputError
    where `run` is not a run folder, where one of its files is damaged, and where `OutputFolder`
    refuses to replace `out`.
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
    result_file, record_file = run / "result.json", run / "eval.json"
    result = _read(result_file, ResultFile) if result_file.is_file() else None
    record = read_record(record_file) if record_file.is_file() else None
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
    if record is not None:
        ious, measured_on = record.metrics.iou_per_class, f"the {record.split} split"
    elif best is not None:
        ious, measured_on = best.get("iou_per_class"), f"validation in epoch {best['epoch']}"
    if record is not None or best is not None:
        colours = dict(zip(names, facts.data.palette or default_palette(len(names)), strict=False))
        rows = [(name, colours.get(name), _percent(iou, 1)) for name, iou in (ious or {}).items()]
        classes = {"measured_on": measured_on, "rows": rows}

    overrides = facts.overrides
    if isinstance(overrides, dict):
        overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    recipe = {"recipe": facts.recipe_name, "overrides": ", ".join(overrides) or "none"}

    pictures = sorted(path for path in (run / "pictures").glob("[!.]*.png") if path.is_file())
    images = []
    for path in pictures[:MAX_PICTURES]:
        content = path.read_bytes()
        if not content.startswith(_PNG):
            raise InputError(f"{path} is not a PNG image; remove it and make the report again.")
        encoded = base64.b64encode(content).decode("ascii")
        images.append((path.stem, f"data:image/png;base64,{encoded}"))

    text = render(
        "training/report.html",
        title=f"{facts.model} on {facts.data.name}",
        summary=summary,
        split=record and record.split,
        evaluation=_evaluation(record) if record else {},
        chart=Markup(svg(curves(log))) if log else None,
        classes=classes,
        images=images,
        more_images=max(len(pictures) - MAX_PICTURES, 0),
        recipe={**recipe, **dict(_flat(facts.recipe))},
        environment=facts.env,
    )
    return target.write(out.name, text.encode("utf-8"))


def _read(path: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(join_problems(f"{path} has problems:", describe(error))) from error


def _evaluation(record: Record) -> dict[str, str]:
    size = "native sizes" if record.size is None else "{} x {} pixels".format(*record.size)
    if record.input_size is not None:
        size += ", network input {} x {}".format(*record.input_size)
    metrics = {
        metric.title: _percent(getattr(record.metrics, metric.key), 2)
        for metric in METRICS
        if metric.report and not metric.per_class
    }
    return {
        **metrics,
        "data": f"{record.dataset}, split {record.split}, {record.images} images, {size}",
        "data hash": record.data_hash,
        "chosen on": record.chosen_on or "nothing",
        "protocol": f"{record.protocol}, test-time augmentation {record.tta}",
        "device": f"{record.device}, {record.precision}",
        "record": str(record.record_hash),
    }


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
