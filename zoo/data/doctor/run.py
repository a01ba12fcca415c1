"""The doctor itself: look at everything once, run every check, report, and repair on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

from zoo.common.console import info, track
from zoo.data.dataset import Dataset, Sample
from zoo.data.doctor.classes import (
    check_classes,
    check_splits,
    count_classes,
    fact_faults,
    facts,
)
from zoo.data.doctor.codes import CODES
from zoo.data.doctor.duplicates import check_copies
from zoo.data.doctor.findings import Diagnosis, Finding
from zoo.data.doctor.images import check_images
from zoo.data.doctor.look import Pair, look_at_image, look_at_mask
from zoo.data.doctor.masks import check_masks
from zoo.data.doctor.source import Fault, Source, find_source
from zoo.data.doctor.video import check_videos
from zoo.data.formats.pairs import natural_key


def doctor(
    data: str | Path, out: Path | None = None, as_json: bool = False, fix: Path | None = None
) -> int:
    """Print what is wrong with `data`; returns 2 where there is an error, else 0.

    `out` is a folder for report.html, `fix` a new folder for a corrected copy. Raises InputError
    where there is no data to look at, and where the copy cannot be made.
    """
    from zoo.data.doctor.fix import check_target, repair
    from zoo.data.doctor.page import write_page
    from zoo.data.doctor.terminal import show

    diagnosis = diagnose(data)
    if fix is not None:
        check_target(diagnosis, fix)
    if as_json:
        sys.stdout.write(json.dumps(diagnosis.as_json(), indent=2) + "\n")
    else:
        show(diagnosis)
    if out is not None:
        info(f"Wrote {write_page(diagnosis, out)}")
    if fix is not None:
        for line in repair(diagnosis, fix):
            info(line)
    return diagnosis.exit_code


def diagnose(data: str | Path, *, workers: int = 2, progress: bool = True) -> Diagnosis:
    """Look at every file of `data` once, with `workers` threads, and run every check.

    `data` is what `load_dataset` takes, but it may be as broken as it likes. Raises InputError
    where there is no such folder or format.
    """
    source = find_source(str(data))
    pairs = _look_at_all(source, workers, progress)
    counts = count_classes(source, pairs)
    found = facts(source, pairs, counts)
    train_images = sum(pair.split == "train" for pair in pairs)
    faults = chain(
        source.faults,
        check_splits(pairs),
        check_images(pairs),
        check_masks(source, pairs),
        check_classes(source, counts, train_images),
        check_copies(source, pairs),
        check_videos(source, pairs),
        fact_faults(source, found),
    )
    return Diagnosis(source, pairs, _findings(source, faults), found)


def _look_at_all(source: Source, workers: int, progress: bool) -> list[Pair]:
    entries = [(split, sample) for split, samples in source.splits.items() for sample in samples]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        looks: Iterator[Pair] = pool.map(partial(_look, source.dataset), entries)
        return list(track(looks, "Looking", len(entries)) if progress else looks)


def _look(dataset: Dataset, entry: tuple[str, Sample]) -> Pair:
    split, sample = entry
    mask = None if sample.mask is None else look_at_mask(sample.mask, dataset)
    return Pair(split, sample.name, look_at_image(sample.image, dataset), mask)


def _findings(source: Source, faults: Iterable[Fault]) -> list[Finding]:
    """One finding for each code, its files in natural order."""
    details: dict[str, list[str]] = {}
    files: dict[str, dict[str, str]] = {}
    for code, path, text in faults:
        details.setdefault(code, [])
        if path is None:
            details[code].append(text)
        else:
            files.setdefault(code, {})[source.shown(path)] = text
    return [
        Finding(
            code,
            {path: files[code][path] for path in sorted(files.get(code, {}), key=natural_key)},
            "; ".join(filter(None, details[code])),
        )
        for code in CODES
        if code in details
    ]
