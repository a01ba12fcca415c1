"""Rows of trained models for registry.yaml: made, proposed from cards, written into overlays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from zoo.common.console import info, warn
from zoo.common.errors import InputError
from zoo.common.files import write_text
from zoo.hub.card import fields_of, read_card
from zoo.hub.config import MAX_CONFIG_BYTES, read_config
from zoo.hub.folder import CARD, CONFIG, WEIGHTS
from zoo.hub.pull import MAX_CARD_BYTES
from zoo.records.metrics import METRICS, STORED
from zoo.registry.load import parse_registry
from zoo.remote.address import PREFIX, Address, hub_timeout, parse_address
from zoo.remote.client import Task, api, call, list_files, reason
from zoo.remote.files import download

LIBRARY = "segmentation-zoo"
MAX_REPOS = 200
ON_CARDS = {metric.hub: metric.key for metric in METRICS if metric.hub and not metric.per_class}


@dataclass(frozen=True)
class Row:
    """Trained weights of a model: their repository and commit, and what was measured.

    `metrics` are fractions in [0, 1]; `data`, `split` and `protocol` say of what.
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
        return rows_text([self])


def rows_text(rows: Iterable[Row]) -> str:
    """Rows of several models as one `models` section."""
    models: dict[str, Any] = {}
    for row in rows:
        entry = models.setdefault(row.model, {"encoder": row.encoder, "weights": {}})
        entry["weights"][row.key] = row.weights
    return _dump({"models": models})


def weights_key(data: str | None) -> str:
    """The key of trained weights: the data's name, safe in YAML and in a shell."""
    return re.sub(r"[^a-z0-9_.-]+", "-", (data or "").lower()).strip("-.") or "trained"


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """The metrics that a row holds."""
    kept = [metric.key for metric in STORED if not metric.per_class]
    given = metrics or {}
    return {key: round(float(given[key]), 6) for key in kept if given.get(key) is not None}


def proposed_rows(repos: Iterable[str], organisation: str | None = None) -> list[Row]:
    """One row for each repository and data set with results on its card, pinned to its commit.

    `repos` are `ORG/REPO[@REVISION]`; an organisation stands for all its repositories of zoo
    models, at most 200. A repository that cannot be used is skipped with a warning. Raises
    InputError where none is left, RunError where the Hub fails.
    """
    names = list(repos)
    if organisation is not None:
        task = Task(f"list the models of {organisation}", Address(f"{organisation}/-"))

        def ask() -> list[str]:
            models = api().list_models(author=organisation, filter=LIBRARY, limit=MAX_REPOS)
            return sorted(model.id for model in models)

        names += call(task, hub_timeout(), ask)
    found: dict[tuple[str, str], Row] = {}
    for name in dict.fromkeys(names):
        try:
            rows = _rows(parse_address(f"{PREFIX}{name.removeprefix(PREFIX)}"))
        except InputError as error:
            warn(f"Skipped {name}: {reason(error)}")
            continue
        for row in rows:  # each under a key of its own within its model
            key, count = row.key, 2
            while (row.model, key) in found:
                key, count = f"{row.key}-{count}", count + 1
            found[row.model, key] = replace(row, key=key)
    if not found:
        raise InputError("None of the repositories holds a model with results on its card.")
    return list(found.values())


def _rows(address: Address) -> list[Row]:
    task, timeout = Task(f"read the card of {address.repo}", address), hub_timeout()
    listing = list_files(task, timeout)
    missing = [name for name in (CONFIG, WEIGHTS, CARD) if name not in listing.files]
    if missing:
        raise InputError(f"{address.repo} holds no {' and no '.join(missing)}.")
    described = read_config(download(task, listing, CONFIG, timeout, MAX_CONFIG_BYTES))
    if described.foreign:
        raise InputError(f"{address.repo} was not pushed by zoo, so its classes have no names.")
    spec = described.spec
    row = Row(spec.name, spec.encoder, address.repo, listing.commit, "")
    card = read_card(download(task, listing, CARD, timeout, MAX_CARD_BYTES), address.repo)
    rows: dict[str, Row] = {}
    for result in _results(fields_of(card)):
        made = replace(row, **result, key=weights_key(result["data"]))
        rows.setdefault(made.key, made)
    if not rows:
        raise InputError(f"{address.repo} states no mIoU with its protocol on its card.")
    return list(rows.values())


def _results(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Data, split, protocol and metrics of every result that states an mIoU with its protocol."""
    index = fields.get("model-index")
    for entry in index if isinstance(index, list) else ():
        results = entry.get("results") if isinstance(entry, dict) else None
        for result in results if isinstance(results, list) else ():
            try:
                yield _result(result)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                warn(f"Skipped a result on the card that cannot be read ({type(error).__name__}).")


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    metrics, protocols = {}, set()
    for metric in result["metrics"]:
        if (key := ON_CARDS.get(metric["type"])) is not None:
            value = float(metric["value"])
            if not 0 <= value <= 1:
                raise ValueError("a metric lies between 0 and 1")
            metrics[key] = value
            protocols.add(int(metric["args"]["protocol"]))
    if "miou" not in metrics or len(protocols) != 1:
        raise ValueError("no mIoU with one protocol")
    data, split = str(result["dataset"]["name"]), str(result["dataset"]["split"])
    return {"data": data, "split": split, "protocol": protocols.pop(), "metrics": metrics}


def register(path: Path, rows: Sequence[Row]) -> None:
    """Add the rows to the overlay file `path`, created if missing; the rest stays as it is.

    Raises InputError where weights of the same name are there already, or where the file is
    written in a way that a row cannot be inserted; nothing is written then.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "version: 1\n"
    for row in rows:
        text = _with_row(text, row, path)
    write_text(path, text)
    info(f"Added to {path}: {', '.join(f'{row.key} of {row.model}' for row in rows)}")


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
            f"{path} writes {'.'.join(place)} in one line with braces, so no row can be inserted. "
            f"Paste it by hand:\n{_dump(added)}"
        )
    first = node.value[0][0].start_mark
    return "".join([*lines[: first.line], _dump(added, " " * first.column), *lines[first.line :]])


def _dump(value: Any, indent: str = "") -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(indent + line for line in text.splitlines(keepends=True))
