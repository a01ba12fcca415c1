"""Run reports: one self-contained HTML page about a finished or unfinished run."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.common.class_lists import default_palette
from zoo.common.errors import InputError, join_problems
from zoo.common.files import read_json, write_text
from zoo.common.html import page
from zoo.records.hashed import describe
from zoo.records.metrics import METRICS
from zoo.records.record import Record, read_record
from zoo.training.charts import Event, curves, latest, read_log, svg

MAX_PICTURES = 24
"""How many pictures one page holds; further ones are counted, not shown."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NONE = "\u2013"
_STATES = {"finished": "finished", "early": "stopped early", "interrupted": "interrupted"}

T = TypeVar("T", bound=BaseModel)
Byte = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]


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
    best_miou: Share | None
    epochs: int
    steps: int
    seconds: float
    stopped: str


@dataclass(frozen=True)
class Run:
    """Everything in a run folder that a report shows; `result` and `record` may not exist yet."""

    facts: RunFile
    log: list[Event]
    result: ResultFile | None
    record: Record | None
    pictures: list[Path]

    @property
    def best(self) -> Event | None:
        """The last epoch that was the best one so far."""
        best = [event for event in latest(self.log, "epoch") if event.get("best")]
        return best[-1] if best else None


def report(run: Path, out: Path | None = None) -> Path:
    """Write the page about the run folder `run` to `out` (run/report.html) and return its path.

    The page needs no other file and no network. Raises InputError where `run` is not a run folder
    or one of its files is damaged.
    """
    out = out or run / "report.html"
    write_text(out, render(read_run(run)))
    return out


def read_run(run: Path) -> Run:
    """Read a run folder in any state. Raises InputError naming the file and its problems."""
    if not (run / "run.json").is_file():
        raise InputError(
            f"{run} is not a run folder: it holds no run.json. Give the folder that "
            "`zoo finetune --out` wrote."
        )
    result, record = run / "result.json", run / "eval.json"
    return Run(
        facts=_read(run / "run.json", RunFile),
        log=read_log(run / "log.jsonl"),
        result=_read(result, ResultFile) if result.is_file() else None,
        record=read_record(record) if record.is_file() else None,
        pictures=sorted(path for path in (run / "pictures").glob("*.png") if path.is_file()),
    )


def render(run: Run) -> str:
    """The page as HTML text."""
    title = f"{run.facts.model} on {run.facts.data.name}"
    sections = [
        _summary(run),
        _evaluation(run),
        _section("Learning curves", _curves(run.log)),
        _section("IoU per class", _classes(run)),
        _section("Pictures", _pictures(run.pictures)) if run.pictures else "",
        _section("Recipe", _pairs(_recipe(run.facts))),
        _section("Environment", _pairs({key: str(run.facts.env[key]) for key in run.facts.env})),
    ]
    return page(title, _STYLE, "\n".join(filter(None, sections)))


def _read(path: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(join_problems(f"{path} has problems:", describe(error))) from error


def _summary(run: Run) -> str:
    epochs, result, best = latest(run.log, "epoch"), run.result, run.best
    state = "not finished" if result is None else _STATES.get(result.stopped, result.stopped)
    seconds = result.seconds if result else sum(event.get("seconds") or 0 for event in epochs)
    miou = best.get("miou") if best else (result.best_miou if result else None)
    tiles = {
        "state": state,
        "best mIoU on validation": _percent(miou, 2),
        "best epoch": str(best["epoch"]) if best else _NONE,
        "epochs done": str(max((event["epoch"] for event in epochs), default=0)),
        "steps done": str(max((event["step"] for event in run.log), default=0)),
        "time": _duration(seconds),
        "seed": str(run.facts.seed),
        "encoder": run.facts.encoder_init
        + (f" ({run.facts.encoder_weights})" if run.facts.encoder_weights else ""),
    }
    items = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in tiles.items()
    ]
    return f'<dl class="tiles">{"".join(items)}</dl>'


def _evaluation(run: Run) -> str:
    record = run.record
    if record is None:
        return ""
    size = "native sizes" if record.size is None else f"{record.size[0]} x {record.size[1]} pixels"
    if record.input_size is not None:
        size += ", seen by the network at {} x {}".format(*record.input_size)
    facts = {
        **{
            metric.title: _percent(getattr(record.metrics, metric.key), 2)
            for metric in METRICS
            if metric.report and not metric.per_class
        },
        "data": f"{record.dataset}, split {record.split}, {record.images} images, {size}",
        "data hash": record.data_hash,
        "chosen on": record.chosen_on or "nothing",
        "protocol": f"{record.protocol}, test-time augmentation {record.tta}",
        "device": f"{record.device}, {record.precision}",
        "record": str(record.record_hash),
    }
    return _section(f"Evaluation on {record.split}", _pairs(facts))


def _curves(log: list[Event]) -> str:
    if not log:
        return "<p>No step has been logged yet.</p>"
    return f'<div class="chart">{svg(curves(log))}</div>'


def _classes(run: Run) -> str:
    """A table of the classes from the evaluation, else from the best epoch."""
    shares: Mapping[str, Any]
    if run.record is not None:
        shares, source = run.record.metrics.iou_per_class, f"the {run.record.split} split"
    elif run.best is not None:
        shares = run.best.get("iou_per_class") or {}
        source = f"validation in epoch {run.best['epoch']}"
    else:
        return "<p>No epoch has ended yet.</p>"
    data = run.facts.data
    palette = data.palette or default_palette(len(data.classes))
    colours = dict(zip(data.classes, palette, strict=False))
    rows = [_class_row(name, shares[name], colours.get(name)) for name in shares]
    return f"<p>Measured on {escape(source)}.</p><table>{''.join(rows)}</table>"


def _class_row(name: str, share: float | None, colour: tuple[int, int, int] | None) -> str:
    swatch = f'<i class="swatch" style="background:rgb{colour}"></i>' if colour else ""
    cell = f'<th scope="row">{swatch}{escape(name)}</th>'
    bar = "absent"
    if share is not None and math.isfinite(share):
        width = 100 * min(max(share, 0), 1)
        bar = f'<div class="bar"><i style="width:{width:.1f}%"></i></div>'
    return f'<tr>{cell}<td class="number">{_percent(share, 1)}</td><td>{bar}</td></tr>'


def _pictures(paths: Sequence[Path]) -> str:
    figures = [_figure(path) for path in paths[:MAX_PICTURES]]
    rest = len(paths) - len(figures)
    more = f"<p>{rest} more in the run folder.</p>" if rest else ""
    return f'<div class="pictures">{"".join(figures)}</div>{more}'


def _figure(path: Path) -> str:
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise InputError(f"{path} is not a PNG picture; remove it and make the report again.")
    name = escape(path.stem)
    source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    return f'<figure><img alt="{name}" src="{source}"><figcaption>{name}</figcaption></figure>'


def _recipe(facts: RunFile) -> dict[str, str]:
    overrides = facts.overrides
    if isinstance(overrides, dict):
        overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    rows = {"recipe": facts.recipe_name, "overrides": ", ".join(overrides) or "none"}
    return {**rows, **dict(_flat(facts.recipe))}


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


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def _pairs(rows: Mapping[str, str]) -> str:
    cells = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'
        for name, text in rows.items()
    ]
    return f"<table>{''.join(cells)}</table>"


def _percent(share: float | None, digits: int) -> str:
    if share is None or not math.isfinite(share):
        return _NONE
    return f"{100 * share:.{digits}f} %"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #626a75; --line: #d9dde3;
  --paper: #ffffff; --panel: #f4f6f8; --accent: #2e8b57; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa3af; --line: #363c45;
  --paper: #15181c; --panel: #1e2228; --accent: #4bb381; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem;
  margin: 0; }
.tiles div { background: var(--panel); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 500; width: 16rem; }
.number { text-align: right; width: 5.5rem; font-variant-numeric: tabular-nums; }
.bar { background: var(--panel); border-radius: .25rem; height: .8rem; margin-top: .3rem; }
.bar i { display: block; background: var(--accent); border-radius: .25rem; height: 100%; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem;
  border: 1px solid var(--soft); border-radius: .15rem; vertical-align: -.05rem; }
.chart { overflow-x: auto; }
.chart svg { max-width: 100%; height: auto; }
.chart svg text[fill="#000"] { fill: var(--ink); }
figure { margin: 0 0 1rem; }
img { max-width: 100%; border-radius: .35rem; }
figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
"""
