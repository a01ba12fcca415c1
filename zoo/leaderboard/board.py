"""The leaderboard as data: what leaderboard.json holds, which ships as the index of the records."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.common.errors import InputError, RunError, join_problems
from zoo.common.files import read_json

FILE = "leaderboard.json"
SCHEMA: Literal[1] = 1
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One record of a row; `environment` is a key of the board's environments."""

    file: str
    record_hash: str
    seed: int
    miou: float
    date: str
    commit: str
    environment: str


@dataclass(frozen=True)
class Entry:
    """One row of a table: a model with one recipe, over its seeds and folds.

    `id` names the setting and stays when it is measured again. Metrics are fractions in [0, 1];
    `metrics` has the others of the leaderboard by key, in a list in the order of the classes where
    they are per class; in JSON its items are fields of the row. `interval` is the
    half-width of the 95 % interval over seeds or folds, `images_interval` the one over the choice
    of images, None where unknown. `best` to `worst` are the ranks that are too close to call.
    `family` is timm's module of the encoder; `licence` that of the encoder's weights. `params_m` in
    millions, `gmacs` in 1e9 multiply-accumulates of one image. `input_size` is what the network
    sees of an image, [height, width] in pixels, where that is not the size of the table's images.
    `sizes` is `dynamic` for a transformer that sees images of every size whole.
    """

    id: str
    rank: int
    best: int
    worst: int
    model: str
    decoder: str
    encoder: str
    family: str
    licence: str | None  # as the stored key is spelled
    encoder_weights: str | None
    recipe: str
    recipe_hash: str
    overrides: dict[str, Any]
    miou: float
    interval: float | None
    images_interval: float | None
    seeds: int
    metrics: dict[str, float | list[float | None] | None]
    params_m: float
    gmacs: float | None
    steps: float
    train_seconds: float
    precision: list[str]
    device: list[str]
    chosen_on: list[str]
    runs: list[Run]
    folds: int = 1
    input_size: list[int] | None = None
    sizes: str | None = None

    @property
    def repeats(self) -> str:
        """What was repeated how often, for the column `seeds`."""
        return repeats(self.seeds, self.folds)

    def metric(self, key: str) -> float | None:
        """A metric of the whole split; None where it is undefined or unknown."""
        value = self.metrics.get(key)
        return None if isinstance(value, list) else value

    def per_class(self, key: str) -> list[float | None]:
        """A metric per class, in the order of the table's classes."""
        value = self.metrics[key]
        return value if isinstance(value, list) else []

    @property
    def places(self) -> str:
        """The rank as shown: `3`, or `2-4` (with a dash) where neighbours are too close to call."""
        return str(self.rank) if self.best == self.worst else f"{self.best}\u2013{self.worst}"


@dataclass(frozen=True)
class BoardTable:
    """Rows that may be compared with each other, best first."""

    dataset: str
    split: str
    protocol: int
    size: list[int] | None
    tta: str
    encoder_init: str
    data_hash: str
    images: int
    classes: list[str]
    ignore: list[str]
    rows: list[Entry]
    sizes: str | None = None
    inference: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """The data set, the split, the encoder's initialisation, and what sets the rows apart."""
        whole = ", whole images" if self.sizes else ""
        title = f"{self.dataset}, {self.split}, {self.encoder_init} encoder{whole}"
        return title + settings_text(self.tta, self.inference or {})

    @property
    def options(self) -> dict[str, str]:
        """The options of `zoo eval` that the rows were measured with, where they can move a score.

        With any of them, the network takes another time than a timing of the model says.
        """
        return ({} if self.tta == "none" else {"tta": self.tta}) | (self.inference or {})


@dataclass(frozen=True)
class Speed:
    """How fast a model runs in one setup: milliseconds per batch, images per second, MiB.

    `size` is that of the images that its network saw, [height, width] in pixels; boards of earlier
    versions do not state it.
    """

    model: str
    setup: str
    p50: float
    p95: float
    images_per_second: float
    peak_mb: float | None
    params_m: float
    gmacs: float | None
    file: str
    record_hash: str
    size: list[int] | None = None


@dataclass(frozen=True)
class Place:
    """The rank and score of a row in an earlier version."""

    title: str
    rank: int
    miou: float
    seeds: int


@dataclass(frozen=True)
class Version:
    """An earlier version of the leaderboard: its rows by id."""

    version: str
    newest: str
    rows: dict[str, Place]


@dataclass(frozen=True)
class Board:
    """Everything on the leaderboard. `version` is a hash of the records, `newest` the latest date.

    `previous` is the last version with other records, None where there was none.
    """

    generated: str
    schema: Literal[1]
    version: str
    newest: str
    environments: dict[str, dict[str, str]]
    tables: list[BoardTable]
    speeds: list[Speed]
    previous: Version | None

    @property
    def setups(self) -> list[str]:
        """The setups in which models were timed, the one with most models first."""
        counts: dict[str, int] = {}
        for speed in self.speeds:
            counts[speed.setup] = counts.get(speed.setup, 0) + 1
        return sorted(counts, key=lambda setup: (-counts[setup], setup))

    def speed_in(self, setup: str | None) -> dict[str, Speed]:
        """The timings in a setup, by the id of the row that they are of.

        Recipes may let a network see another size than that of the images: a row has only the
        timings of its model at the size that its network sees, and none where overrides changed
        the model, or where it was measured with test-time augmentation, windows or a backend that
        timings are not of.
        """
        timed = {(s.model, *s.size): s for s in self.speeds if s.setup == setup and s.size}
        found = {}
        for table, row in self.entries():
            seen = row.input_size or table.size or ()
            changed = any(key.startswith("model.") for key in row.overrides)
            if (
                not changed
                and not table.options
                and (speed := timed.get((row.model, *seen))) is not None
            ):
                found[row.id] = speed
        return found

    def entries(self) -> Iterator[tuple[BoardTable, Entry]]:
        """Every row with its table, in their order."""
        for table in self.tables:
            for row in table.rows:
                yield table, row

    def as_version(self) -> Version:
        """What a later version compares itself with."""
        rows = {
            row.id: Place(f"{row.model} on {table.title}", row.rank, row.miou, row.seeds)
            for table, row in self.entries()
        }
        return Version(self.version, self.newest, rows)


def settings_text(tta: str, inference: Mapping[str, str]) -> str:
    """What the heading of a table says of its rows' inference; nothing where it is the default."""
    augmented = {} if tta == "none" else {"test-time augmentation": tta}
    return "".join(f", {name} {value}" for name, value in (augmented | {**inference}).items())


def repeats(seeds: int, folds: int) -> str:
    """`3` for three seeds, `5 folds` for one of each, `5 folds x 3` for three of each."""
    if folds == 1:
        return str(seeds)
    return f"{folds} folds" + (f" x {seeds}" if seeds > 1 else "")


def board_text(board: Board) -> str:
    """The board as JSON, one line for each row, timing and environment."""
    return _lines(vars(board), 4) + "\n"


def read_board(path: Path) -> Board:
    """Read leaderboard.json. Raises InputError where it cannot be read as this version's."""
    from pydantic import TypeAdapter, ValidationError

    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise InputError(
            f"{path} is not a leaderboard of schema {SCHEMA}. Restore it, or remove it and run "
            "`zoo leaderboard build`, which then has no previous version to compare with."
        )
    fields = {field.name for field in dataclasses.fields(Entry)}
    try:
        for table in value.get("tables", ()):
            for row in table["rows"]:  # what is no field of a row is a metric: METRICS needs numpy
                row["metrics"] = {key: row.pop(key) for key in list(row) if key not in fields}
        return TypeAdapter(Board).validate_python(value)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: its tables need rows.") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:20]]
        raise InputError(join_problems(f"{path} cannot be read:", problems)) from error


@functools.cache
def shipped() -> Board:
    """The leaderboard that comes with zoo: inside the installed package, else in benchmarks/."""
    for path in (PACKAGE / FILE, PACKAGE.parent.parent / "benchmarks" / FILE):
        if path.is_file():
            return read_board(path)
    raise RunError(f"{FILE} is missing from this installation of zoo. Install zoo again.")


def front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names of the Pareto front of (cost, score): nothing is as cheap and better, or cheaper
    and as good. Equal points are all on it."""
    found: set[str] = set()
    best = float("-inf")
    ordered = sorted(points.items(), key=lambda item: (item[1][0], -item[1][1]))
    previous: tuple[float, float] | None = None
    for name, (cost, score) in ordered:
        if score > best or (cost, score) == previous:
            best, previous = max(best, score), (cost, score)
            found.add(name)
    return found


def change_lines(board: Board) -> list[str]:
    """What is new, gone or different since the version before, in words, best rows first."""
    if board.previous is None:
        return []
    before, now = board.previous.rows, board.as_version().rows
    lines = []
    for key, place in now.items():
        old = before.get(key)
        if old is None:
            lines.append(f"new: {place.title}, rank {place.rank}, mIoU {100 * place.miou:.2f} %")
            continue
        parts = []
        if place.miou != old.miou:
            parts.append(f"mIoU {100 * old.miou:.2f} to {100 * place.miou:.2f} %")
        if place.seeds != old.seeds:
            parts.append(f"seeds {old.seeds} to {place.seeds}")
        if place.rank != old.rank:
            parts.append(f"rank {old.rank} to {place.rank}")
        if parts:
            lines.append(f"changed: {place.title}, {', '.join(parts)}")
    return lines + [f"gone: {place.title}" for key, place in before.items() if key not in now]


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are in the file, the metrics of a row among the others."""
    if not isinstance(value, Entry):
        return _known(value)
    fields: dict[str, Any] = {}
    for name, item in _known(value).items():
        fields |= item if name == "metrics" else {name: item}
    return fields


def _known(value: Any) -> dict[str, Any]:
    """The fields of a dataclass without those that boards of before lack, where they are None."""
    younger = ("sizes", "inference")
    return {
        key: item for key, item in vars(value).items() if key not in younger or item is not None
    }


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON with a line for each item down to `depth` levels; plain values are on one line."""
    value = _plain(value) if dataclasses.is_dataclass(value) else value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    plain = not any(isinstance(v, (dict, list)) or dataclasses.is_dataclass(v) for v in inner)
    if depth == 0 or plain:
        return json.dumps(value, allow_nan=False, default=_plain)
    deeper = [_lines(item, depth - 1, indent + " ") for item in inner]
    if isinstance(value, dict):
        deeper = [f"{json.dumps(key)}: {text}" for key, text in zip(value, deeper, strict=True)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return (
        f"{opening}\n" + ",\n".join(f"{indent} {text}" for text in deeper) + f"\n{indent}{closing}"
    )
