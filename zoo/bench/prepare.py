"""Checks before a suite runs: its jobs, the data that was given, what every job needs here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.bench.folder import Order
from zoo.bench.jobs import collect_jobs, expected_weights, indented, refuse
from zoo.bench.suite import Suite
from zoo.common.errors import InputError, unknown
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import data_hash
from zoo.data.load import load_dataset


def orders(
    suite: Suite, data: Sequence[str], results: Path, registry: Path | None = None
) -> list[Order]:
    """What the processes of the suite's jobs have to do; `data` are texts NAME=DATA.

    Reads the images of the reported splits once for their hashes. Raises one InputError with
    everything that is wrong with the suite and the data.
    """
    problems: list[str] = []
    jobs = collect_jobs(suite, registry, problems)
    places = _places(suite, data, problems)
    found = {name: _loaded(name, place, suite, problems) for name, place in places.items()}
    refuse(suite, problems)
    hashes = {name: data_hash(d, suite.split) for name, d in found.items() if d is not None}
    weights = {
        setting: expected_weights(*setting, registry)
        for setting in dict.fromkeys((job.model, job.encoder_weights) for job in jobs)
    }
    return [
        Order(
            job=job,
            data=places[job.data],
            data_hash=hashes[job.data],
            encoder_weights=weights[job.model, job.encoder_weights],
            results=results,
            registry=registry,
        )
        for job in jobs
    ]


def _places(suite: Suite, data: Sequence[str], problems: list[str]) -> dict[str, str]:
    """DATA of every data set of the suite; that of `drive` holds `drive/fold_0` as a folder."""
    given: dict[str, str] = {}
    needed = suite.data_names()
    heads = {name: name.partition("/")[0] for name in needed}
    for text in data:
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            problems.append(f"--data {text!r} should be NAME=DATA, such as camvid=camvid:PATH")
        elif name in given:
            problems.append(f"--data {name} is given twice")
        elif name not in {*needed, *heads.values()}:
            problems.append(f"--data {name}: {unknown('data set of the suite', name, needed)}")
        else:
            given[name] = place
    places = {}
    for name, head in heads.items():
        if name in given:
            places[name] = given[name]
        elif head in given:
            places[name] = f"{given[head].rstrip('/')}/{name.partition('/')[2]}"
        else:
            problems.append(f"there is no data for {name}; give --data {head}=DATA")
    return places


def _loaded(name: str, place: str, suite: Suite, problems: list[str]) -> Dataset | None:
    try:
        dataset = load_dataset(place)
    except InputError as error:
        problems.append(f"--data {name}: {indented(error)}")
        return None
    for split in ("train", "val", suite.split):
        try:
            dataset.samples(split)
        except InputError as error:
            problems.append(f"--data {name}: {indented(error)}")
    if dataset.name != name:
        problems.append(
            f"--data {name}: this data set has the name {dataset.name!r}, and so have its records. "
            f"Write `name: {name}` into its dataset.yaml, or that name into the suite"
        )
    return dataset
