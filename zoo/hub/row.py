"""A trained model's row for registry.yaml, and writing it into an overlay file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import write_text
from zoo.records.metrics import STORED
from zoo.registry.rows import parse_registry


@dataclass(frozen=True)
class Row:
    """Trained weights of a model: where they lie, pinned, and what was measured.

    `metrics` are shares in [0, 1]; `data`, `split` and `protocol` say of what.
    """

    model: str
    encoder: str
    hub: str
    revision: str
    key: str
    metrics: dict[str, float] = field(default_factory=dict)
    data: str | None = None
    split: str | None = None
    protocol: int | None = None

    @property
    def weights(self) -> dict[str, Any]:
        """The entry under `weights`."""
        given: dict[str, Any] = {
            "hub": self.hub,
            "revision": self.revision,
            "metrics": self.metrics,
        }
        given |= {"data": self.data, "split": self.split, "protocol": self.protocol}
        return {key: value for key, value in given.items() if value}

    def text(self) -> str:
        """The row as YAML to paste into registry.yaml."""
        entry = {"encoder": self.encoder, "weights": {self.key: self.weights}}
        return _dump({"models": {self.model: entry}})


def rows_text(rows: Iterable[Row]) -> str:
    """Rows of several models as one `models` section."""
    models: dict[str, Any] = {}
    for row in rows:
        entry = models.setdefault(row.model, {"encoder": row.encoder, "weights": {}})
        entry["weights"][row.key] = row.weights
    return _dump({"models": models})


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows, each under a key of its own within its model."""
    taken: set[tuple[str, str]] = set()
    found = []
    for row in rows:
        key, count = row.key, 2
        while (row.model, key) in taken:
            key, count = f"{row.key}-{count}", count + 1
        taken.add((row.model, key))
        found.append(replace(row, key=key))
    return found


def weights_key(data: str | None) -> str:
    """The key of trained weights: the data's name, without what YAML or a shell would act on."""
    return re.sub(r"[^a-z0-9_.-]+", "-", (data or "").lower()).strip("-.") or "trained"


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """The metrics that a row holds."""
    kept = [metric.key for metric in STORED if not metric.per_class]
    given = metrics or {}
    return {key: round(float(given[key]), 6) for key in kept if given.get(key) is not None}


def register(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows into the overlay file `path`; everything else in it stays as it is.

    The file is made where there is none. Weights of the same name are replaced only by hand.
    Raises InputError where they are there already, or where the file is written in a way that a
    row cannot be put into; nothing is written then.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "version: 1\n"
    for row in rows:
        text = _with_row(text, row, path)
    write_text(path, text)
    info(f"Written into {path}: {', '.join(f'{row.key} of {row.model}' for row in rows)}")


def _with_row(text: str, row: Row, path: Path) -> str:
    """`text`, the content of `path`, with the row in it."""
    known = parse_registry(text, str(path)).models
    held = known[row.model].weights if row.model in known else {}
    if row.key in held:
        raise InputError(
            f"{path} names the weights {row.key!r} of {row.model} already. Replace them by hand:\n"
            f"{row.text()}"
        )
    entry: dict[str, Any] = {"encoder": row.encoder, "weights": {row.key: row.weights}}
    if held:
        place, added = ["models", row.model, "weights"], {row.key: row.weights}
    elif row.model in known:
        place, added = ["models", row.model], {"weights": entry["weights"]}
    else:
        place, added = ["models"], {row.model: entry}
    changed = _inserted(text, place, added, path)
    parse_registry(changed, str(path))
    return changed


def _inserted(text: str, place: list[str], added: dict[str, Any], path: Path) -> str:
    """`text` with `added` as the first entries of the mapping at `place`."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in place:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in entries if name.value == key), None)
    if node is None:
        return f"{text.rstrip()}\n\n{_dump({'models': added})}".lstrip()
    lines = text.splitlines(keepends=True)
    if not node.value:  # nothing, null or {} behind the key
        start, end = node.start_mark.index, node.end_mark.index
        indent = "  " * len(place)
        return f"{text[:start].rstrip(' ')}\n{_dump(added, indent).rstrip()}{text[end:]}"
    if node.flow_style:
        raise InputError(
            f"{path} writes {'.'.join(place)} in one line with braces, where no row can be put in. "
            f"Paste it by hand:\n{_dump(added)}"
        )
    first = node.value[0][0].start_mark
    return "".join([*lines[: first.line], _dump(added, " " * first.column), *lines[first.line :]])


def _dump(value: Any, indent: str = "") -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(indent + line for line in text.splitlines(keepends=True))
