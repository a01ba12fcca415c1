"""The leaderboard as one HTML page that needs no other file and no network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.common.html import asset, render
from zoo.leaderboard.board import Board, BoardTable, Entry, Speed, change_lines
from zoo.leaderboard.plots import Plot, Point, plot
from zoo.leaderboard.render import NONE, notes, percent, recipe_label
from zoo.records.metrics import ON_LEADERBOARD, SCORE

CHANGES = 50
"""As many changes since the last version are listed; further ones are counted."""


@dataclass(frozen=True)
class Column:
    """A column: its title and its text for a row and the row's timing.

    Numbers are right-aligned; `descending` columns begin with the largest. The page's script finds
    a column by its `name`.
    """

    title: str
    text: Callable[[Entry, Speed | None], str]
    number: bool = True
    descending: bool = False
    name: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of the page: its title and caption, its columns, the id and texts of each row."""

    title: str
    caption: str
    columns: Sequence[Column]
    rows: list[tuple[str, list[str]]]
    css_class: str


@dataclass(frozen=True)
class Figure:
    """A plot, with the place and the name of the setup that its costs were measured in."""

    plot: Plot
    place: int | None = None
    setup: str = ""


def site(board: Board) -> str:
    """The page as HTML text. Every text of a record is escaped; only the page's script may run."""
    setup = board.setups[0] if board.setups else None
    rows = [row for _, row in board.entries()]
    changes = change_lines(board)
    # For each row on the page: latency and memory in every setup, None where not timed.
    speeds: dict[str, list[list[float | None] | None]] = {}
    for place, name in enumerate(board.setups):
        for row, speed in board.speed_in(name).items():
            timings = speeds.setdefault(row, [None] * len(board.setups))
            timings[place] = [speed.p50, speed.peak_mb]
    return render(
        "leaderboard/site.html",
        title="Leaderboard",
        style=asset("leaderboard/site.css"),
        script=asset("leaderboard/site.js"),
        board=board,
        rows=len(rows),
        changes=changes[:CHANGES],
        more_changes=len(changes[CHANGES:]),
        choices={
            "decoder": ("decoder", _options({row.decoder for row in rows})),
            "family": ("encoder family", _options({row.family for row in rows})),
            "license": ("license", _options({_license(row) for row in rows})),
        },
        setups=enumerate(board.setups),
        sections=[_section(board, table, board.speed_in(setup)) for table in board.tables],
        speeds=speeds,
        commands=commands,
        percent=percent,
    )


def _options(names: set[str]) -> list[tuple[str, str]]:
    return [(name, name) for name in sorted(names)]


def commands(table: BoardTable, row: Entry) -> str:
    """The commands that measure the row's first run again; DATA is the user's copy of the data.

    GIVEN is a folder with the weights that the table says by their digest.
    """
    run = row.runs[0]
    commit = run.commit.removesuffix("-dirty")
    lines = [f"git checkout {shlex.quote(commit)}"] if commit else []
    if commit != run.commit:
        lines[-1] += "  # with changes that were not committed"
    target = row.model
    if row.recipe != "none":
        target = "RUN"
        given = [f"{key}={json.dumps(value)}" for key, value in sorted(row.overrides.items())]
        model = "GIVEN" if table.encoder_init.startswith("given-") else row.model
        words = ["zoo", "finetune", model, "--data", "DATA", "--recipe", row.recipe]
        words += ["--out", target]
        words += ["--encoder-weights", "none"] if table.encoder_init == "random" else []
        lines.append(shlex.join([*words, f"seed={run.seed}", *given]))
    options = dict(table.options)
    if (precision := options.pop("precision", None)) is not None:  # int8, or int8+bf16
        openvino = options.get("backend") == "openvino"
        words, target = ["zoo", "export", target], "FILE.xml" if openvino else "FILE.onnx"
        words += ["--format", "openvino" if openvino else "onnx"]
        lines.append(shlex.join([*words, "--int8", "--calibrate", "DATA", "--out", target]))
        if rest := precision.partition("+")[2]:
            options["precision"] = rest
    score = ["zoo", "eval", target, "--data", "DATA", "--split", table.split, "--out", "RESULTS"]
    for name, value in options.items():
        score += [f"--{name}", value]
    return "\n".join([*lines, shlex.join(score)])


def _section(board: Board, table: BoardTable, timed: dict[str, Speed]) -> dict[str, Any]:
    """What the template shows of one table."""
    columns, rows = _columns(timed=bool(board.setups)), table.rows
    cells = _cells(table, columns, timed)
    main = Grid("Models", f"Models on {table.title}", columns, cells, "board main")
    classes = []
    for metric in ON_LEADERBOARD:
        if metric.per_class:
            per_class = [
                *columns[:2],
                *_class_columns(table, metric.key, metric.better == "higher"),
            ]
            title = f"{metric.title} per class"
            caption = f"{title} on {table.title}, percent"
            classes.append(Grid(title, caption, per_class, _cells(table, per_class, {}), "board"))
    lines = ["mIoU: the mean over seeds \u00b1 the half-width of Student's 95 % interval."]
    if any(row.images_interval is not None for row in rows):
        lines.append("\u00b1 images: 95 % interval of the bootstrap over the images.")
    lines += notes(
        ranges=any(row.best != row.worst for row in rows),
        single_runs=any(row.interval is None for row in rows),
        folds=any(row.folds > 1 for row in rows),
        uncounted=any(row.images_interval is None for row in rows),
    )
    figures = []  # the score against each cost that is known
    for label, cost in (("parameters, M", "params_m"), ("multiply-accumulates, G", "gmacs")):
        if found := _plot(table, label, {row.id: getattr(row, cost) for row in rows}):
            figures.append(Figure(found))
    for place, setup in enumerate(board.setups):
        speeds = board.speed_in(setup)
        for label, cost in (("latency, ms", "p50"), ("peak memory, MB", "peak_mb")):
            costs = {row.id: getattr(speeds.get(row.id), cost, None) for row in rows}
            if found := _plot(table, label, costs):
                figures.append(Figure(found, place, setup))
    return {"table": table, "main": main, "classes": classes, "notes": lines, "figures": figures}


def _cells(
    table: BoardTable, columns: Sequence[Column], timed: dict[str, Speed]
) -> list[tuple[str, list[str]]]:
    return [
        (row.id, [column.text(row, timed.get(row.id)) for column in columns]) for row in table.rows
    ]


def _columns(timed: bool) -> list[Column]:
    """The columns of a main table; those of one setup only where models were `timed`."""

    def score(row: Entry, _: Speed | None) -> str:
        interval = "" if row.interval is None else f" \u00b1 {100 * row.interval:.2f}"
        return f"{percent(row.miou, 2)}{interval}"

    def recipe(row: Entry, _: Speed | None) -> str:
        return recipe_label(row.recipe, row.recipe_hash, row.overrides)

    columns = [
        Column("rank", lambda row, _: row.places),
        Column("model", lambda row, _: row.model, number=False),
        Column(f"{SCORE.title} %", score, descending=True, name=SCORE.key),
        Column("\u00b1 images", lambda row, _: percent(row.images_interval, 2)),
        Column("seeds", lambda row, _: row.repeats, descending=True),
        *(
            Column(f"{metric.title} %", _metric(metric.key), descending=metric.better == "higher")
            for metric in ON_LEADERBOARD
            if metric is not SCORE and not metric.per_class
        ),
        Column("params M", lambda row, _: _number(row.params_m, 2), name="params"),
        Column("GMACs", lambda row, _: _number(row.gmacs, 2)),
    ]
    if timed:
        columns += [
            Column("latency ms", lambda _, s: _number(s.p50 if s else None, 1), name="latency"),
            Column("memory MB", lambda _, s: _number(s.peak_mb if s else None, 0), name="memory"),
        ]
    columns += [
        Column("decoder", lambda row, _: row.decoder, number=False, name="decoder"),
        Column("encoder family", lambda row, _: row.family, number=False, name="family"),
        Column("license of weights", lambda row, _: _license(row), number=False, name="license"),
        Column("recipe", recipe, number=False),
        Column("precision", lambda row, _: ", ".join(row.precision), number=False),
    ]
    return columns


def _metric(key: str) -> Callable[[Entry, Speed | None], str]:
    return lambda row, _: percent(row.metric(key), 2)


def _class_columns(table: BoardTable, key: str, descending: bool) -> Iterator[Column]:
    def text(index: int) -> Callable[[Entry, Speed | None], str]:
        return lambda row, _: percent(row.per_class(key)[index], 1)

    for index, name in enumerate(table.classes):
        yield Column(name, text(index), descending=descending)


def _license(row: Entry) -> str:
    return row.licence or "not stated"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _plot(table: BoardTable, label: str, costs: dict[str, float | None]) -> Plot | None:
    points = [
        Point(row.id, row.model, cost, 100 * row.miou)
        for row in table.rows
        if (cost := costs[row.id])
    ]
    return plot(points, label)
