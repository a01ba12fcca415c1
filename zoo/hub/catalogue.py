"""Rows for a registry, proposed from the cards of repositories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.hub.card import fields_of, read_card
from zoo.hub.config import MAX_CONFIG_BYTES, read_config
from zoo.hub.folder import CARD, CONFIG, WEIGHTS
from zoo.hub.pull import MAX_CARD_BYTES
from zoo.hub.row import Row, distinct, weights_key
from zoo.records.metrics import METRICS
from zoo.remote.address import PREFIX, Address, hub_timeout, parse_address
from zoo.remote.client import Task, api, call, list_files, reason
from zoo.remote.files import download

LIBRARY = "segmentation-zoo"
MAX_REPOS = 200
NAMES = {metric.hub: metric.key for metric in METRICS if metric.hub and not metric.per_class}


def proposed_rows(repos: Iterable[str], organisation: str | None = None) -> list[Row]:
    """One row for each repository and data set with results on its card, pinned to its commit.

    `repos` are `ORG/REPO[@REVISION]`; an organisation stands for all its repositories of zoo
    models, at most 200. A repository that cannot be used is left out with a remark. Raises
    InputError where none is left, RunError where the Hub fails.
    """
    found: list[Row] = []
    names = [*repos, *(_repositories(organisation) if organisation else ())]
    for name in dict.fromkeys(names):
        try:
            found += _rows(parse_address(f"{PREFIX}{name.removeprefix(PREFIX)}"))
        except InputError as error:
            info(f"{name} is left out: {reason(error)}")
    if not found:
        raise InputError("None of the repositories holds a model with results on its card.")
    return distinct(found)


def _repositories(organisation: str) -> list[str]:
    task = Task(f"list the models of {organisation}", Address(f"{organisation}/-"))

    def ask() -> list[str]:
        models = api().list_models(author=organisation, filter=LIBRARY, limit=MAX_REPOS)
        return sorted(model.id for model in models)

    return call(task, hub_timeout(), ask)


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
                info(f"A result on the card cannot be read ({type(error).__name__}).")


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    metrics, protocols = {}, set()
    for metric in result["metrics"]:
        if (key := NAMES.get(metric["type"])) is not None:
            value = float(metric["value"])
            if not 0 <= value <= 1:
                raise ValueError("a share lies between 0 and 1")
            metrics[key] = value
            protocols.add(int(metric["args"]["protocol"]))
    if "miou" not in metrics or len(protocols) != 1:
        raise ValueError("no mIoU with one protocol")
    data, split = str(result["dataset"]["name"]), str(result["dataset"]["split"])
    return {"data": data, "split": split, "protocol": protocols.pop(), "metrics": metrics}
