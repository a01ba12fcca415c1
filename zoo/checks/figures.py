"""Whether the figures that ship with zoo follow: scores from records, sizes from the models."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from zoo.common.console import track
from zoo.common.errors import InputError
from zoo.leaderboard.board import Board, shipped
from zoo.models.build import build, gmacs, params_m
from zoo.models.spec import model_spec
from zoo.records.record import read_record
from zoo.registry.load import CuratedModel, TrainedWeights, load_registry, registry_file
from zoo.registry.overrides import model_options
from zoo.registry.resolve import resolve

BENCHMARKS = "benchmarks"
STATED = 5e-5
"""How far a score in registry.yaml, written with four digits, may lie from its record's."""
COUNTED = 1e-5
"""How far, in millions and in 1e9, a count may lie from the one in a record, as rounded there."""


def score_problems(
    models: Mapping[str, CuratedModel] | None = None, root: Path | None = None
) -> list[str]:
    """Each figure of the registry's trained weights that is not that of the record it names.

    `models` and `root`, the folder that paths of records start from, are those of the registry that
    comes with zoo unless given. Empty for an installation without the folder of the records.
    """
    models = load_registry().models if models is None else models
    root = root or registry_file().parent
    if not (root / BENCHMARKS).is_dir():
        return []
    return [
        f"models.{name}.weights.{key}: {problem}"
        for name, model in models.items()
        for key, weights in model.weights.items()
        for problem in _score_problems(name, weights, root)
    ]


def count_problems(sample: int | None = None, board: Board | None = None) -> list[str]:
    """Each parameter and multiply-accumulate count of the leaderboard that is not counted here.

    Every model is rebuilt for the classes and the size of its table, or `sample` of them, and
    for the crop that it was trained with where that is part of the net.
    """
    stated: dict[tuple[str, int, tuple[int, ...], int, str], tuple[float, float | None]] = {}
    for table, row in (board or shipped()).entries():
        side = 0  # what a run built the encoder for, as `Plan.img_size`; 0 for any size
        with contextlib.suppress(InputError):
            known = resolve(row.model).row
            crop = row.overrides.get("crop") or load_registry().recipe(row.recipe).crop
            fixed = known is not None and (known.built_for_size or known.resizes == "dynamic")
            side = int(crop) if fixed and row.sizes != "dynamic" else 0
        given = model_options([f"{key}={json.dumps(v)}" for key, v in row.overrides.items()])
        options = json.dumps(given, sort_keys=True)
        key = row.model, len(table.classes), tuple(table.size or ()), side, options
        stated[key] = row.params_m, row.gmacs
    keys = sorted(stated)
    if sample is not None and sample < len(keys):
        keys = random.Random(0).sample(keys, sample)
    problems = []
    for name, classes, size, side, options in track(keys, "models of the leaderboard", len(keys)):
        params, macs = stated[name, classes, size, side, options]
        try:
            given = json.loads(options)
            arguments = given.pop("encoder_args", {})
            built_for = arguments.pop("img_size", side) or None
            resolved = resolve(name, None, arguments or None)
            resolved.check(given)
            windows = bool(side) and resolved.row is not None and resolved.row.sees_whole
            spec = model_spec(
                resolved, classes, img_size=built_for, options=given,
                encoder_args={"dynamic_img_size": False} if windows else None,
            )  # fmt: skip
            model = build(spec)
        except InputError as error:
            problems.append(f"{name} is on the leaderboard and cannot be built: {error}")
            continue
        found = params_m(model)
        if abs(found - params) > COUNTED:
            problems.append(
                f"{name}: {params} M parameters on the leaderboard, {found:.6f} counted"
            )
        counted = gmacs(model.spec, *size) if size else None
        if macs is not None and (counted is None or abs(counted - macs) > COUNTED):
            problems.append(
                f"{name} at {size[0]} x {size[1]}: {macs} GMACs on the leaderboard, "
                f"{counted} counted"
            )
    return problems


def _score_problems(name: str, weights: TrainedWeights, root: Path) -> Iterator[str]:
    if not weights.metrics:
        return
    if weights.results is None:
        yield "metrics need `results`, the record that they are from"
        return
    try:
        record = read_record(root / weights.results)
    except InputError as error:
        yield str(error)
        return
    for key, given, found in (
        ("the model", name, record.model),
        ("data", weights.data, record.dataset),
        ("split", weights.split, record.split),
        ("protocol", weights.protocol, record.protocol),
    ):
        if given is not None and given != found:
            yield f"{key} is {given!r}, {found!r} in {weights.results}"
    for metric, value in weights.metrics.items():
        stated = getattr(record.metrics, metric, None)
        if not isinstance(stated, float):
            yield f"metrics.{metric}: {weights.results} has no such figure"
        elif abs(stated - value) > STATED:
            yield f"metrics.{metric}: is {value:g}, {stated:.6f} in {weights.results}"
