"""Choosing models by what was measured: the leaderboard that ships, filtered and sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zoo.common.errors import InputError, join_problems, number_of, unknown
from zoo.leaderboard.board import Board, Entry, front, shipped
from zoo.registry.resolve import describe
from zoo.runtime.environment import cpu_name

SORTS = ("rank", "params", "gmacs", "latency", "pareto")

LEADERBOARD = "leaderboard"


@dataclass(frozen=True)
class Wanted:
    """What the models must meet; None where it does not matter.

    `min_miou` is a fraction in [0, 1]; `machine` is part of the name of a setup, as the leaderboard
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
    def timed(self) -> bool:
        """Whether the answer needs latencies."""
        return self.max_latency_ms is not None or self.machine is not None or self.sort == "latency"

    def fits(self, model: str, decoder: str, encoder: str) -> bool:
        """Whether a model's names match the patterns."""
        pairs = [(self.pattern, model), (self.decoder, decoder), (self.encoder, encoder)]
        return all(pattern is None or fnmatchcase(name, pattern) for pattern, name in pairs)

    def meets(self, miou: float | None, latency_ms: float | None) -> bool:
        """Whether a model's score and latency are within the limits."""
        return (self.min_miou is None or (miou is not None and miou >= self.min_miou)) and (
            self.max_latency_ms is None
            or (latency_ms is not None and latency_ms <= self.max_latency_ms)
        )


@dataclass(frozen=True)
class Found:
    """A model with its best row in one table, and its timing in the chosen setup.

    Metrics are fractions in [0, 1]; without a data set there is no table and no score. `on_front`
    says whether the row is on the Pareto front that the sorting asks for.
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
    """The measured models that meet `wanted`, table by table, best first.

    `board` is the leaderboard that ships unless given. Raises InputError where the data set has no
    records, where a machine has no or several setups, and where a limit lacks what it refers to.
    """
    board = board or shipped()
    score, latency, sort = wanted.min_miou, wanted.max_latency_ms, wanted.sort or "rank"
    if sort not in SORTS:
        raise InputError(unknown("order", sort, SORTS))
    if score is not None and not 0 <= score <= 1:
        raise InputError(f"--min-miou must be between 0 and 1, not {score:g}; for example 0.6.")
    if latency is not None and not latency > 0:
        raise InputError(f"--max-latency-ms must be above 0, not {latency:g}.")
    if wanted.data is None and (score is not None or wanted.sort in ("rank", "pareto")):
        option = f"--sort {wanted.sort}" if score is None else "--min-miou"
        raise InputError(f"{option} needs a data set: add --data, such as --data camvid.")
    setup = choose_setup(board, wanted.machine) if wanted.timed else None
    groups: list[list[Found]] = []
    if wanted.data:
        # The best row of each fitting model, for each table of the data set.
        tables = [table for table in board.tables if table.dataset == wanted.data]
        if not tables:
            names = dict.fromkeys(table.dataset for table in board.tables)
            raise InputError(unknown("data set", wanted.data, names))
        speeds = board.speed_in(setup)
        for table in tables:
            best: dict[str, Entry] = {}
            for row in table.rows:
                if wanted.fits(row.model, row.decoder, row.encoder):
                    best.setdefault(row.model, row)
            groups.append(
                [
                    Found(
                        model=row.model,
                        table=table.title,
                        miou=row.miou,
                        interval=row.interval,
                        seeds=row.seeds,
                        recipe=row.recipe,
                        params_m=row.params_m,
                        gmacs=row.gmacs,
                        latency_ms=speeds[row.id].p50 if row.id in speeds else None,
                        setup=setup,
                    )
                    for row in best.values()
                ]
            )
    else:
        # The fitting models that were timed in the setup, or in any if none is asked for.
        models = {speed.model: speed for speed in board.speeds if setup in (None, speed.setup)}
        timed = [
            Found(model, None, None, None, None, None, speed.params_m, speed.gmacs,
                  None if setup is None else speed.p50, setup)
            for model, speed in sorted(models.items())
            if wanted.fits(model, *model.split(".")[0].split("-", 1))
        ]  # fmt: skip
        groups.append(timed)
    found: list[Found] = []
    for group in groups:
        kept = [row for row in group if wanted.meets(row.miou, row.latency_ms)]
        found += _sorted(kept, sort, setup)
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
            "No model on the leaderboard was timed. `zoo bench speed NAME... --out DIR` times "
            "models, `zoo leaderboard build --speed DIR` adds the timings."
        )
    start = f"Several setups match {given}" if fitting else f"No model was timed on {given}"
    raise InputError(
        join_problems(
            f"{start}. Give --machine with a part that only one of these has:",
            fitting or board.setups,
        )
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
            runs = number_of(row.seeds, "seed")
            yield (
                f"measured.{number}",
                f"mIoU {100 * row.miou:.2f}{interval} % on {table.title}: rank {row.places} of "
                f"{len(table.rows)}, {row.repeats if row.folds > 1 else runs}, recipe {row.recipe}",
            )
    timed = [speed for speed in board.speeds if speed.model == model]
    for number, speed in enumerate(timed, 1):
        yield f"latency.{number}", f"{speed.p50:.1f} ms on {speed.setup}"


_COSTS: dict[str, Callable[[Found], float | None]] = {
    "params": lambda row: row.params_m,
    "gmacs": lambda row: row.gmacs,
    "latency": lambda row: row.latency_ms,
}


def _sorted(rows: list[Found], sort: str, setup: str | None) -> list[Found]:
    """By rank; by a cost, rows without it last; or the Pareto front first."""
    rows = sorted(rows, key=lambda row: -(row.miou or 0))
    if sort in _COSTS:
        by_cost = [(_COSTS[sort](row), row) for row in rows]
        by_cost.sort(key=lambda item: math.inf if item[0] is None else item[0])
        return [row for _, row in by_cost]
    if sort == "pareto":
        cost = _COSTS["latency" if setup else "params"]
        points = {
            row.model: (found, row.miou)
            for row in rows
            if (found := cost(row)) is not None and row.miou is not None
        }
        best = front(points)
        rows = [replace(row, on_front=row.model in best) for row in rows]
        rows.sort(key=lambda row: not row.on_front)
    return rows
