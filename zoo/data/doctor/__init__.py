"""The doctor: decodes every file of a data set once, runs all checks, reports, and repairs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

from zoo.common.console import info, track
from zoo.common.files import natural_key
from zoo.data.dataset import Sample
from zoo.data.doctor.codes import CODES, Diagnosis, Finding, LabelIssues
from zoo.data.doctor.file_checks import check_images, check_masks, levels_of
from zoo.data.doctor.fix import check_target, repair
from zoo.data.doctor.look import Pair, look_at_image
from zoo.data.doctor.output import page_target, show, show_labels, write_page
from zoo.data.doctor.set_checks import (
    check_classes,
    check_duplicates,
    check_splits,
    check_videos,
    count_classes,
    statistics,
    statistics_as_faults,
)
from zoo.data.doctor.source import find_source
from zoo.data.inspect.facts import FactCache
from zoo.data.inspect.mask_looks import look_at_mask

__all__ = ["diagnose", "doctor"]


def doctor(
    data: str | Path,
    out: Path | None = None,
    as_json: bool = False,
    fix: Path | None = None,
    overwrite: bool = False,
    labels: Callable[[], LabelIssues] | None = None,
) -> int:
    """Print what is wrong with `data`; returns 2 if there is an error, else 0.

    `out` is a folder for report.html, `fix` a new folder for a corrected copy. `labels` compares
    the labels with a model, see `zoo.evaluation.label_issues`. Raises InputError if there is no
    data to look at, if the copy cannot be made, or if report.html is there and zoo did not write
    it, unless `overwrite` is set.
    """
    target = None if out is None else page_target(out, overwrite)
    diagnosis = diagnose(data)
    if fix is not None:
        check_target(diagnosis, fix)
    if not as_json:
        show(diagnosis)
    if labels is not None:
        issues = labels()
        diagnosis = replace(diagnosis, labels=issues)
        if not as_json:
            show_labels(issues)
    if as_json:
        sys.stdout.write(json.dumps(diagnosis.as_json(), indent=2) + "\n")
    if target is not None:
        info(f"Wrote {write_page(diagnosis, target)}")
    if fix is not None:
        for line in repair(diagnosis, fix):
            info(line)
    return diagnosis.exit_code


def diagnose(data: str | Path, *, workers: int = 2, progress: bool = True) -> Diagnosis:
    """Look at every file of `data`, with `workers` threads, and run every check.

    Every image is decoded once, and every mask that was not seen before by this, or by
    `zoo data init`, as long as its size and modification time stay the same.

    `data` is what `load_dataset` takes, but it may be broken in any way. Raises InputError if there
    is no such folder or format.
    """
    source = find_source(str(data))
    entries = [(split, sample) for split, samples in source.splits.items() for sample in samples]

    cache = FactCache(source.root)

    def look(entry: tuple[str, Sample]) -> Pair:
        split, sample = entry
        mask = None if sample.mask is None else look_at_mask(sample.mask, source.dataset, cache)
        return Pair(split, sample.name, look_at_image(sample.image, source.dataset), mask)

    try:
        with ThreadPoolExecutor(max_workers=workers) as pool:
            looks: Iterator[Pair] = pool.map(look, entries)
            pairs = list(track(looks, "Checking", len(entries)) if progress else looks)
    finally:
        cache.save()
    levels = levels_of(source, pairs)
    counts = count_classes(source, pairs) if levels is None else {}
    facts = statistics(source, pairs, counts, levels)
    details: dict[str, list[str]] = {}
    files: dict[str, dict[str, str]] = {}
    for code, path, text in chain(
        source.faults,
        check_splits(source, pairs),
        check_images(pairs),
        check_masks(source, pairs, levels),
        check_classes(source, counts, sum(pair.split == "train" for pair in pairs)),
        check_duplicates(source, pairs),
        check_videos(source, pairs),
        statistics_as_faults(source, facts),
    ):
        details.setdefault(code, [])
        if path is None:
            details[code].append(text)
        else:
            files.setdefault(code, {})[source.shown(path)] = text
    findings = [
        Finding(
            code,
            {path: files[code][path] for path in sorted(files.get(code, {}), key=natural_key)},
            "; ".join(filter(None, details[code])),
        )
        for code in CODES
        if code in details
    ]
    return Diagnosis(source, pairs, findings, facts)
