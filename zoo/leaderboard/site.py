"""The leaderboard as one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from importlib import resources

from zoo.common.html import data_block, page
from zoo.leaderboard.board import Board, BoardTable, Entry, Speed, change_lines
from zoo.leaderboard.plots import Point, plot
from zoo.leaderboard.rank import NOISE
from zoo.leaderboard.render import FOLDED
from zoo.leaderboard.site_rows import class_table, main_table, provenance

CHANGES = 50
"""As many changes since the last version are listed; further ones are counted."""


def site(board: Board) -> str:
    """The page as HTML text. Every text of a record is escaped, and one script alone may run."""
    body = [
        f"<!-- generated {board.generated} -->",
        _about(board),
        _changes(board),
        _controls(board),
        *(_section(board, table) for table in board.tables),
        "" if board.tables else "<p>There are no records yet.</p>",
        _environments(board),
        data_block("speeds", _speeds(board)),
    ]
    return page("Leaderboard", _asset("site.css"), "\n".join(filter(None, body)), _asset("site.js"))


def _asset(name: str) -> str:
    return resources.files("zoo.leaderboard").joinpath(name).read_text(encoding="utf-8")


def _about(board: Board) -> str:
    rows = sum(len(table.rows) for table in board.tables)
    tables = f"{len(board.tables)} table{'' if len(board.tables) == 1 else 's'}"
    newest = f", the newest of {escape(board.newest[:10])}" if board.newest else ""
    return (
        f"<p>{rows} rows in {tables}{newest}; version {escape(board.version)}. "
        "Every number follows from a record. Rows compare within one table alone. A model's name "
        "leads to where its numbers come from; the heads of the columns sort.</p>"
    )


def _changes(board: Board) -> str:
    if board.previous is None:
        return ""
    lines = change_lines(board)
    items = [f"<li>{escape(line)}</li>" for line in lines[:CHANGES]]
    rest = len(lines) - len(items)
    items += [f"<li>and {rest} more</li>"] if rest else []
    before = f"{escape(board.previous.version)} of {escape(board.previous.newest[:10])}"
    listed = f"<ul>{''.join(items)}</ul>" if items else "<p>No row differs.</p>"
    return (
        f'<details id="changes"><summary>Changes since version {before}: {len(lines)}</summary>'
        f"{listed}</details>"
    )


def _controls(board: Board) -> str:
    entries = [entry for _, entry in board.entries()]
    setups = [(str(place), setup) for place, setup in enumerate(board.setups)]
    fields = [
        _field("search", '<input type="search" id="search" autocomplete="off">', "model"),
        _choice("decoder", "decoder", _named(entries, lambda entry: entry.decoder)),
        _choice("family", "encoder family", _named(entries, lambda entry: entry.family)),
        _choice("licence", "licence", _named(entries, lambda e: e.licence or "not stated")),
        _field("params", _number("params"), "parameters up to, M"),
        _field("latency", _number("latency"), "latency up to, ms") if setups else "",
        _choice("setup", "timed on", setups, every=False) if setups else "",
    ]
    return (
        f'<form class="controls" role="search">{"".join(fields)}'
        '<button type="reset">show all</button><output id="count" aria-live="polite"></output>'
        "</form>"
    )


def _named(entries: Iterable[Entry], value: Callable[[Entry], str]) -> list[tuple[str, str]]:
    names = sorted({value(entry) for entry in entries})
    return [(name, name) for name in names]


def _choice(name: str, label: str, options: list[tuple[str, str]], every: bool = True) -> str:
    listed = [("", "all"), *options] if every else options
    inner = "".join(f'<option value="{escape(v)}">{escape(text)}</option>' for v, text in listed)
    return _field(name, f'<select id="{name}">{inner}</select>', label)


def _number(name: str) -> str:
    return f'<input type="number" id="{name}" min="0" step="any" inputmode="decimal">'


def _field(name: str, control: str, label: str) -> str:
    return f'<div><label for="{name}">{escape(label)}</label>{control}</div>'


def _section(board: Board, table: BoardTable) -> str:
    size = f"{table.size[0]} x {table.size[1]} pixels" if table.size else "native sizes (mixed)"
    about = (
        f"{table.images} images, {size}, {len(table.classes)} classes, ignored label "
        f"{', '.join(table.ignore)}, test-time augmentation {table.tta}, protocol "
        f"{table.protocol}, content hash {table.data_hash}"
    )
    setup = board.setups[0] if board.setups else None
    notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(table))
    made = "\n".join(provenance(table, row) for row in table.rows)
    return (
        f"<section><h2>{escape(table.title)}</h2><p>{escape(about)}</p>"
        f"{main_table(table, board.speed_in(setup))}<ul class=notes>{notes}</ul>"
        f'<div class="plots">{_plots(board, table)}</div>'
        f"<details><summary>IoU per class</summary>{class_table(table)}</details>"
        '<details class="made"><summary>Where the numbers come from</summary>'
        "<p>DATA is your copy of the data, RUN and RESULTS are folders that you choose.</p>"
        f"{made}</details></section>"
    )


def _notes(table: BoardTable) -> list[str]:
    lines = ["mIoU: the mean over seeds \u00b1 the half-width of Student's 95 % interval."]
    if any(row.best != row.worst for row in table.rows):
        lines.append("A range of ranks: the rows from the first to the last are too close to call.")
    if any(row.interval is None for row in table.rows):
        lines.append(f"Single runs differ by about {100 * NOISE:.0f} mIoU by chance.")
    if any(row.images_interval is not None for row in table.rows):
        lines.append("\u00b1 images: 95 % interval of the bootstrap over the images.")
    if any(row.folds > 1 for row in table.rows):
        lines.append(FOLDED)
    elif any(row.images_interval is None for row in table.rows):
        lines.append("\u00b1 images \u2013: no counts per image, so ties rest on seeds alone.")
    return lines


def _plots(board: Board, table: BoardTable) -> str:
    figures = [
        _figure(table, "parameters, M", lambda row: row.params_m),
        _figure(table, "multiply-accumulates, G", lambda row: row.gmacs),
    ]
    for place, setup in enumerate(board.setups):
        timed = board.speed_in(setup)
        for label, value in (("latency, ms", _p50), ("peak memory, MB", _peak)):
            figures.append(_figure(table, label, _of_model(timed, value), (place, setup)))
    return "".join(figures)


def _p50(speed: Speed) -> float | None:
    return speed.p50


def _peak(speed: Speed) -> float | None:
    return speed.peak_mb


def _of_model(
    timed: dict[str, Speed], value: Callable[[Speed], float | None]
) -> Callable[[Entry], float | None]:
    return lambda row: value(timed[row.model]) if row.model in timed else None


def _figure(
    table: BoardTable,
    label: str,
    cost: Callable[[Entry], float | None],
    setup: tuple[int, str] | None = None,
) -> str:
    points = [
        Point(row.id, row.model, found, 100 * row.miou)
        for row in table.rows
        if (found := cost(row))
    ]
    picture = plot(points, label)
    if not picture:
        return ""
    if setup is None:
        return f"<figure>{picture}</figure>"
    place, text = setup
    hidden = " hidden" if place else ""
    caption = f"<figcaption>{escape(text)}</figcaption>"
    return f'<figure data-setup="{place}"{hidden}>{picture}{caption}</figure>'


def _environments(board: Board) -> str:
    items = [
        f'<dt id="{escape(name)}" tabindex="-1">{escape(name)}</dt><dd>'
        f"{escape(', '.join(f'{key} {text}' for key, text in versions.items()))}</dd>"
        for name, versions in board.environments.items()
    ]
    return f"<section><h2>Versions</h2><dl>{''.join(items)}</dl></section>" if items else ""


def _speeds(board: Board) -> dict[str, list[list[float | None] | None]]:
    """For each model on the page: latency and memory in every setup, None where not timed."""
    models = {entry.model for _, entry in board.entries()}
    places = {setup: place for place, setup in enumerate(board.setups)}
    found: dict[str, list[list[float | None] | None]] = {}
    for speed in board.speeds:
        if speed.model in models:
            row = found.setdefault(speed.model, [None] * len(places))
            row[places[speed.setup]] = [speed.p50, speed.peak_mb]
    return found
