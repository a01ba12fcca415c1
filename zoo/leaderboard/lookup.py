"""Choosing models by what was measured: the leaderboard that ships, filtered and sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zoo.common.errors import InputError, join_problems, unknown
from zoo.leaderboard.board import Board, BoardTable, Entry, front, shipped
from zoo.registry.resolve import describe
from zoo.runtime.environment import cpu_name

SORTS = ("rank", "params", "gmacs", "latency", "pareto")

LEADERBOARD = "leaderboard"


@dataclass(frozen=True)
class Wanted:
    """What the models must meet; None where it does not matter.

    `min_miou` is a share in [0, 1]; `machine` is part of the name of a setup, as the leaderboard
    has it. The others are patterns.
    """

    pattern: str = "*"
    decoder: str | None = None
    encoder: str | None = None
    data: str | None = None
    min_miou: float | None = None
    max_latency_ms: float | None = None
    machine: str | None = None
    sort: str | None = None

    @property
    def measured(self) -> bool:
        """Whether anything is asked that only measurements can answer."""
        asked = (self.data, self.min_miou, self.max_latency_ms, self.machine, self.sort)
        return any(value is not None for value in asked)

    @property
    def timed(self) -> bool:
        """Whether the answer needs latencies."""
        return self.max_latency_ms is not None or self.machine is not None or self.sort == "latency"


@dataclass(frozen=True)
class Found:
    """A model with its best row in one table, and its timing in the chosen setup.

    Shares lie in [0, 1]; without a data set there is no table and no score. `on_front` says
    whether the row is on the Pareto front that the sorting asks for.
    """

    model: str
    table: str | None
    miou: float | None
    interval: float | None
    seeds: int | None
    recipe: str | None
    params_m: float
    gmacs: float | None
    latency_ms: float | None
    setup: str | None
    on_front: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def find(wanted: Wanted, board: Board | None = None) -> list[Found]:
    """The measured models that meet `wanted`, each table by itself, best first.

    `board` is the leaderboard that ships unless given. Raises InputError where the data set has no
    records, where a machine has none or several setups, and where a limit lacks what it refers to.
    """
    board = board or shipped()
    _check(wanted)
    setup = choose_setup(board, wanted.machine) if wanted.timed else None
    groups = _of_data(wanted, board, setup) if wanted.data else [_timed(wanted, board, setup)]
    found: list[Found] = []
    for group in groups:
        kept = [row for row in group if _meets(row, wanted)]
        found += _sorted(kept, wanted.sort or "rank", setup)
    return found


def choose_setup(board: Board, machine: str | None) -> str:
    """The one setup whose name holds `machine`, or that is of this machine's CPU.

    Raises InputError that lists the setups where there is not exactly one.
    """
    if machine is None:
        given = f"this machine ({cpu_name()})"
        fitting = [setup for setup in board.setups if setup.startswith(f"{cpu_name()}, ")]
    else:
        given = repr(machine)
        fitting = [setup for setup in board.setups if machine.casefold() in setup.casefold()]
    if len(fitting) == 1:
        return fitting[0]
    if not board.setups:
        raise InputError(
            "There are no timings yet: `zoo bench speed NAME... --out DIR` makes them, "
            "`zoo leaderboard build --speed DIR` puts them on the leaderboard."
        )
    start = f"Several timings fit {given}" if fitting else f"No timing is of {given}"
    setups = fitting or board.setups
    raise InputError(
        join_problems(f"{start}. Give --machine with a part that only one of these has:", setups)
    )


def show(name: str, overlay: Path | None = None) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of everything known about a model, in a fixed order.

    `name` is a registry name, `overlay` an overlay file. Raises InputError for an unknown name.
    """
    rows = describe(name, overlay)
    current = str(rows[0][1])  # a renamed model has its new name here
    return rows + [(key, value, LEADERBOARD) for key, value in measured_rows(current)]


def measured_rows(model: str, board: Board | None = None) -> Iterator[tuple[str, str]]:
    """What was measured of a model, as (key, text): its best row in each table, its timings."""
    board = board or shipped()
    for number, table in enumerate(board.tables, 1):
        row = next((row for row in table.rows if row.model == model), None)
        if row is not None:
            interval = "" if row.interval is None else f" \u00b1 {100 * row.interval:.2f}"
            yield (
                f"measured.{number}",
                f"mIoU {100 * row.miou:.2f}{interval} % on {table.title}: rank {row.places} of "
                f"{len(table.rows)}, {_seeds(row)}, recipe {row.recipe}",
            )
    timed = [speed for speed in board.speeds if speed.model == model]
    for number, speed in enumerate(timed, 1):
        yield f"latency.{number}", f"{speed.p50:.1f} ms on {speed.setup}"


def _seeds(row: Entry) -> str:
    if row.folds > 1:
        return row.repeats
    return f"{row.seeds} seed{'s' if row.seeds > 1 else ''}"


def _check(wanted: Wanted) -> None:
    if wanted.sort is not None and wanted.sort not in SORTS:
        raise InputError(unknown("order", wanted.sort, SORTS))
    if wanted.min_miou is not None and not 0 <= wanted.min_miou <= 1:
        raise InputError(
            f"--min-miou {wanted.min_miou:g} is no share: give a number from 0 to 1, such as 0.6."
        )
    if wanted.max_latency_ms is not None and not wanted.max_latency_ms > 0:
        raise InputError(f"--max-latency-ms {wanted.max_latency_ms:g} must be above 0.")
    needs = "--min-miou" if wanted.min_miou is not None else ""
    needs = needs or (f"--sort {wanted.sort}" if wanted.sort in ("rank", "pareto") else "")
    if needs and wanted.data is None:
        raise InputError(f"{needs} refers to a data set; name it with --data, such as camvid.")


def _fits(wanted: Wanted, model: str, decoder: str, encoder: str) -> bool:
    pairs = [(wanted.pattern, model), (wanted.decoder, decoder), (wanted.encoder, encoder)]
    return all(pattern is None or fnmatchcase(name, pattern) for pattern, name in pairs)


def _of_data(wanted: Wanted, board: Board, setup: str | None) -> Iterator[list[Found]]:
    """The best row of each fitting model, for each table of the data set."""
    tables = [table for table in board.tables if table.dataset == wanted.data]
    if not tables:
        names = dict.fromkeys(table.dataset for table in board.tables)
        raise InputError(unknown("data set", str(wanted.data), names))
    speeds = board.speed_in(setup)
    for table in tables:
        rows: dict[str, Entry] = {}
        for row in table.rows:
            if _fits(wanted, row.model, row.decoder, row.encoder):
                rows.setdefault(row.model, row)
        yield [
            _found(table, row, speeds[row.model].p50 if row.model in speeds else None, setup)
            for row in rows.values()
        ]


def _found(table: BoardTable, row: Entry, latency: float | None, setup: str | None) -> Found:
    return Found(
        model=row.model,
        table=table.title,
        miou=row.miou,
        interval=row.interval,
        seeds=row.seeds,
        recipe=row.recipe,
        params_m=row.params_m,
        gmacs=row.gmacs,
        latency_ms=latency,
        setup=setup,
    )


def _timed(wanted: Wanted, board: Board, setup: str | None) -> list[Found]:
    """The fitting models that were timed in the setup, or in any where none is asked for."""
    models = {speed.model: speed for speed in board.speeds if setup in (None, speed.setup)}
    return [
        Found(model, None, None, None, None, None, speed.params_m, speed.gmacs,
              None if setup is None else speed.p50, setup)
        for model, speed in sorted(models.items())
        if _fits(wanted, model, *model.split(".")[0].split("-", 1))
    ]  # fmt: skip


def _meets(row: Found, wanted: Wanted) -> bool:
    score, latency = wanted.min_miou, wanted.max_latency_ms
    return (score is None or (row.miou is not None and row.miou >= score)) and (
        latency is None or (row.latency_ms is not None and row.latency_ms <= latency)
    )


_COSTS: dict[str, Callable[[Found], float | None]] = {
    "params": lambda row: row.params_m,
    "gmacs": lambda row: row.gmacs,
    "latency": lambda row: row.latency_ms,
}


def _sorted(rows: Iterable[Found], sort: str, setup: str | None) -> list[Found]:
    """By rank, by a cost (what has none last), or the Pareto front first."""
    ordered = sorted(rows, key=lambda row: -(row.miou or 0))
    if sort in _COSTS:
        cost = _COSTS[sort]
        return sorted(ordered, key=lambda row: _last_if_none(cost(row)))
    if sort == "pareto":
        return _front_first(ordered, _COSTS["latency" if setup else "params"])
    return ordered


def _last_if_none(cost: float | None) -> float:
    return math.inf if cost is None else cost


def _front_first(rows: list[Found], cost: Callable[[Found], float | None]) -> list[Found]:
    points = {
        row.model: (found, row.miou)
        for row in rows
        if (found := cost(row)) is not None and row.miou is not None
    }
    best = front(points)
    marked = [replace(row, on_front=row.model in best) for row in rows]
    return sorted(marked, key=lambda row: not row.on_front)
