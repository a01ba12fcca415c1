"""The tables of the page, and where each number in them comes from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from zoo.leaderboard.board import BoardTable, Entry, Run, Speed
from zoo.leaderboard.render import recipe_label

NONE = "\u2013"


@dataclass(frozen=True)
class Column:
    """A column's title; numbers stand right, and `descending` ones begin with the largest."""

    title: str
    number: bool = True
    descending: bool = False
    name: str = ""


COLUMNS = (
    Column("rank"),
    Column("model", number=False),
    Column("mIoU %", descending=True, name="miou"),
    Column("\u00b1 images"),
    Column("seeds", descending=True),
    Column("accuracy %", descending=True),
    Column("Dice %", descending=True),
    Column("params M", name="params"),
    Column("GMACs"),
    Column("latency ms", name="latency"),
    Column("memory MB", name="memory"),
    Column("decoder", number=False, name="decoder"),
    Column("encoder family", number=False, name="family"),
    Column("licence of weights", number=False, name="licence"),
    Column("recipe", number=False),
    Column("precision", number=False),
)


TIMED = ("latency", "memory")


def main_table(table: BoardTable, speeds: dict[str, Speed]) -> str:
    """All rows of a table with what they cost in one setup; no such columns without `speeds`."""
    columns = [column for column in COLUMNS if speeds or column.name not in TIMED]
    rows = (_row(row, speeds) for row in table.rows)
    return sortable(columns, rows, f"Models on {table.title}", "board main")


def class_table(table: BoardTable) -> str:
    """The IoU of each class in per cent."""
    classes = [Column(name, descending=True) for name in table.classes]
    columns = [COLUMNS[0], COLUMNS[1], *classes]
    rows = (
        f'<tr data-id="{row.id}"><td>{row.places}</td>{_head(row)}'
        + "".join(f"<td>{percent(value, 1)}</td>" for value in row.iou_per_class)
        + "</tr>"
        for row in table.rows
    )
    return sortable(columns, rows, f"IoU per class on {table.title}, per cent")


def sortable(
    columns: Sequence[Column], rows: Iterable[str], caption: str, kind: str = "board"
) -> str:
    """A table whose heads are buttons, the first of them in order already."""
    heads = "".join(
        f'<th scope="col" aria-sort="{"none" if place else "ascending"}"'
        f"{' class=n' if column.number else ''}{' data-desc' if column.descending else ''}"
        f"{f' data-name={column.name}' if column.name else ''}>"
        f'<button type="button">{escape(column.title)}</button></th>'
        for place, column in enumerate(columns)
    )
    label = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="{kind}"><caption>{label}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
        '<button type="button" class="more" hidden></button>'
    )


def provenance(table: BoardTable, row: Entry) -> str:
    """How a row was made and can be made again: settings, commands, records."""
    facts = {
        "encoder": f"{row.encoder}, weights {row.encoder_weights or 'random'}",
        "data": f"{table.dataset}, {table.split}, {table.images} images, hash {table.data_hash}",
        "chosen on": ", ".join(row.chosen_on),
        "recipe": f"{row.recipe}, hash {row.recipe_hash}",
        "training": f"{row.steps:.0f} steps, {row.train_seconds / 60:.1f} minutes a run",
        "device": f"{'; '.join(row.device)}; {', '.join(row.precision)}",
    }
    listed = "".join(f"<dt>{key}</dt><dd>{escape(text)}</dd>" for key, text in facts.items())
    return (
        f'<details id="r-{row.id}"><summary>{row.places} {escape(row.model)}, '
        f"{percent(row.miou, 2)} %</summary><dl>{listed}</dl>"
        f"<pre><code>{escape(commands(table, row))}</code></pre>"
        f"<ul>{''.join(_record(run) for run in row.runs)}</ul></details>"
    )


def commands(table: BoardTable, row: Entry) -> str:
    """The commands that measure the row's first run again; DATA is the user's copy of the data."""
    run = row.runs[0]
    commit = run.commit.removesuffix("-dirty")
    lines = [f"git checkout {shlex.quote(commit)}"] if commit else []
    if commit != run.commit:
        lines[-1] += "  # with changes that were not committed"
    target = row.model
    if row.recipe != "none":
        target = "RUN"
        given = [f"{key}={json.dumps(value)}" for key, value in sorted(row.overrides.items())]
        words = ["zoo", "finetune", row.model, "--data", "DATA", "--recipe", row.recipe]
        words += ["--out", target]
        words += ["--encoder-weights", "none"] if table.encoder_init == "random" else []
        lines.append(shlex.join([*words, f"seed={run.seed}", *given]))
    score = ["zoo", "eval", target, "--data", "DATA", "--split", table.split, "--out", "RESULTS"]
    return "\n".join([*lines, shlex.join(score)])


def percent(share: float | None, digits: int) -> str:
    """A share in per cent; a dash where there is none."""
    return NONE if share is None else f"{100 * share:.{digits}f}"


def number(value: float | None, digits: int) -> str:
    """A number; a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def _row(row: Entry, speeds: dict[str, Speed]) -> str:
    speed = speeds.get(row.model)
    timed = [NONE, NONE] if speed is None else [number(speed.p50, 1), number(speed.peak_mb, 0)]
    interval = "" if row.interval is None else f" \u00b1 {100 * row.interval:.2f}"
    recipe = recipe_label(row.recipe, row.recipe_hash, row.overrides)
    cells = [
        f"{percent(row.miou, 2)}{interval}",
        percent(row.images_interval, 2),
        row.repeats,
        percent(row.pixel_accuracy, 2),
        percent(row.mean_dice, 2),
        number(row.params_m, 2),
        number(row.gmacs, 2),
        *(timed if speeds else ()),
        escape(row.decoder),
        escape(row.family),
        escape(row.licence or "not stated"),
        escape(recipe),
        escape(", ".join(row.precision)),
    ]
    joined = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr data-id="{row.id}"><td>{row.places}</td>{_head(row)}{joined}</tr>'


def _head(row: Entry) -> str:
    return f'<th scope="row"><a href="#r-{row.id}">{escape(row.model)}</a></th>'


def _record(run: Run) -> str:
    return (
        f"<li>seed {run.seed}: {percent(run.miou, 2)} %, {escape(run.date)}, "
        f'<a href="#{escape(run.environment)}">versions</a>, commit '
        f"{escape(run.commit[:12] or 'unknown')}, hash {escape(run.record_hash)}, "
        f"<code>{escape(run.file)}</code></li>"
    )
