"""A diagnosis for people: tables for a terminal, and one self-contained HTML page with images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.common.errors import InputError, printable_lines, shortened
from zoo.common.files import OutputFolder
from zoo.common.html import data_url, render
from zoo.data.dataset import IGNORE
from zoo.data.doctor.codes import SEVERITIES, Diagnosis, LabelIssues
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Source
from zoo.data.pixels.images import read_image
from zoo.data.pixels.masks import IGNORE_COLOUR, png, read_source_ids
from zoo.data.pixels.overlay import as_rgb, background_id

SHOWN = 3
"""How many files of a finding the terminal names."""
LISTED_CLASSES = 8
LISTING = {"D401", "D402", "D403", "D404", "D405", "D504", "D602"}
"""The codes whose detail has a part for each class or video, and how many the terminal shows."""
COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
LISTED = 200
IMAGES = 6
SAMPLES = 8
"""How many files of a finding the page names, how many it shows, and how many of the rest."""
LONGEST = 320
PAGE = "report.html"
UNKNOWN = (255, 0, 255)
"""The colour of ids without a class."""


def show(diagnosis: Diagnosis) -> None:
    """Print one table for each severity to stdout, then a summary line."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    splits = ", ".join(f"{name} {count}" for name, count in diagnosis.splits.items())
    console.print(Text(printable_lines(f"{diagnosis.source.name}: {splits or 'no pairs'}"), "bold"))
    for severity in SEVERITIES:
        found = [finding for finding in diagnosis.of(severity) if finding.code != "D603"]
        if found:
            heading = Text(f"{severity.capitalize()}s", style=COLOURS[severity])
            columns = ("code", "what", "where", "remedy")
            table = Table(*columns, title=heading, title_justify="left", box=None)
            for finding in found:
                about, files = finding.about, list(finding.files.items())
                where = [finding.detail] if finding.detail else []
                if finding.code in LISTING:  # --json and the page have all of it
                    separator = "; " if "; " in finding.detail else ", "
                    where = [shortened(finding.detail.split(separator), LISTED_CLASSES)]
                where += [f"{path}: {text}" if text else path for path, text in files[:SHOWN]]
                if len(files) > SHOWN:
                    where.append(f"... and {len(files) - SHOWN} more")
                remedy = about.remedy + (" (--fix)" if about.fixable else "")
                cells = (about.code, about.title, "\n".join(where), remedy)
                table.add_row(*(Text(printable_lines(cell)) for cell in cells))
            console.print()
            console.print(table)
    if diagnosis.facts["dataset_yaml"]:
        console.print(Text("\nA dataset.yaml that fits the masks (D603):\n", style="bold"))
        console.print(Text(diagnosis.facts["dataset_yaml"]), soft_wrap=True)  # can be pasted
    console.print(Text(f"\n{diagnosis.summary}", style="bold"))


def show_labels(labels: LabelIssues) -> None:
    """Print which images and which labels a model disputes most, to stdout."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    images = Table(
        "score", "disputed", "split", "image", "mostly", box=None, title_justify="left",
        title=Text(f"Labels that {printable_lines(labels.model)} disputes", style="bold"),
    )  # fmt: skip
    for image in labels.images[:LISTED_CLASSES]:
        mostly = ", ".join(f"{pair.label} -> {pair.model}" for pair in image.pairs[:1])
        part = f"{100 * image.disputed / image.pixels:.2f} %"
        cells = (f"{image.score:.4f}", part, image.split, image.image, mostly)
        images.add_row(*(Text(printable_lines(cell)) for cell in cells))
    pairs = Table("label", "model says", "pixels", "of the label", box=None)
    for pair in labels.pairs[:LISTED_CLASSES]:
        of_label = f"{100 * pair.fraction:.2f} %"
        row = (pair.label, pair.model, f"{pair.pixels:,}", of_label)
        pairs.add_row(*(Text(printable_lines(cell)) for cell in row))
    for table in (images, pairs):
        console.print()
        console.print(table)


def page_target(folder: Path, overwrite: bool = False) -> OutputFolder:
    """The place of `write_page`. Raises InputError for a report.html that zoo did not write."""
    return OutputFolder(folder, [PAGE], overwrite=overwrite, shared=True)


def write_page(diagnosis: Diagnosis, target: OutputFolder) -> Path:
    """Write report.html and return its path; it needs no other file and no network."""
    source, pixels = diagnosis.source, diagnosis.facts["pixels"]
    classes = []
    for index, (name, colour) in enumerate(zip(source.classes, source.palette, strict=True)):
        percent = [100 * counts[index] / max(sum(counts), 1) for counts in pixels.values()]
        classes.append((name, colour, [f"{value:.2f}" for value in percent]))
    # under each finding the first pairs whose image or mask it names
    sections = []
    for severity in SEVERITIES:
        rows = []
        for finding in diagnosis.of(severity):
            concerned = [
                pair
                for pair in diagnosis.pairs
                if source.shown(pair.image.path) in finding.files
                or (pair.mask and source.shown(pair.mask.path) in finding.files)
            ]
            rows.append((finding, concerned[:IMAGES]))
        sections.append((severity, rows))
    page = render(
        "data/doctor/report.html",
        title=f"Doctor: {source.name}",
        diagnosis=diagnosis,
        sections=sections,
        classes=classes if pixels else [],
        samples=diagnosis.pairs[:: max(1, -(-len(diagnosis.pairs) // SAMPLES))],
        listed=LISTED,
        labels=diagnosis.labels,
        urls=[data_url(one, "webp") for one in diagnosis.labels.pictures]
        if diagnosis.labels
        else [],
        shown=source.shown,
        image=lambda pair: _data_url(source, pair),
    )
    # File names may not be valid text.
    return target.write(PAGE, page.encode("utf-8", "replace"))


def _data_url(source: Source, pair: Pair) -> str | None:
    """The image beside the image under its mask, as far as both can be decoded."""
    try:
        picture = Image.fromarray(as_rgb(read_image(pair.image.path, source.dataset)))
    except InputError:
        return None
    picture.thumbnail((LONGEST, LONGEST))
    image = np.asarray(picture)
    ids = None
    if pair.mask is not None:
        try:
            ids = read_source_ids(pair.mask.path, source.dataset)
        except InputError:
            ids = None
    if ids is not None:
        # the mask at the size of the image, in the colours of its classes
        height, width = image.shape[:2]
        rows = np.arange(height) * ids.shape[0] // height
        columns = np.arange(width) * ids.shape[1] // width
        values, places = np.unique(ids[np.ix_(rows, columns)], return_inverse=True)
        palette = {**dict(enumerate(source.palette)), IGNORE: IGNORE_COLOUR}
        unpainted = background_id(source.classes)
        colours = [palette.get(source.id_map.get(int(value), -1), UNKNOWN) for value in values]
        coloured = np.array(colours, dtype=np.uint8)[places.reshape(height, width)]
        mixed = ((image.astype(np.uint16) + coloured) // 2).astype(np.uint8)
        hidden = np.array([source.id_map.get(int(value), -1) == unpainted for value in values])
        mixed = np.where(hidden[places.reshape(height, width, 1)], image, mixed)
        gap = np.full((height, 4, 3), 255, dtype=np.uint8)
        image = np.concatenate([image, gap, mixed], axis=1)
    return data_url(png(image), "png")
