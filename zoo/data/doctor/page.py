"""The findings as one self-contained HTML page with pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.common.errors import InputError
from zoo.common.files import write_text
from zoo.common.html import page
from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE
from zoo.data.doctor.codes import SEVERITIES
from zoo.data.doctor.findings import Diagnosis, Finding, count_splits
from zoo.data.doctor.look import Pair, as_rgb
from zoo.data.doctor.source import Source
from zoo.data.doctor.terminal import summary
from zoo.data.pixels.images import read_image
from zoo.data.pixels.masks import IGNORE_COLOUR, png, read_source_ids

LISTED = 200
PICTURES = 6
SAMPLES = 8
LONGEST = 320
STRANGE = (255, 0, 255)
"""The colour of ids that are no class."""


def write_page(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write `folder`/report.html and return its path; it needs no other file and no network."""
    path = folder / "report.html"
    write_text(path, render(diagnosis))
    return path


def render(diagnosis: Diagnosis) -> str:
    """The page as HTML text."""
    splits = count_splits(diagnosis.pairs)
    title = f"Doctor: {diagnosis.source.name}"
    about = ", ".join(f"{split} {count}" for split, count in splits.items())
    body = [f"<p>{escape(about)}. {escape(summary(diagnosis))}.</p>"]
    for severity in SEVERITIES:
        found = diagnosis.of(severity)
        if found:
            body.append(f"<h2>{severity.capitalize()}s</h2>")
            body += [_finding(diagnosis, finding) for finding in found]
    body.append(_classes(diagnosis))
    body.append(_samples(diagnosis))
    text = page(title, _STYLE, "\n".join(body))
    return text.encode("utf-8", "replace").decode("utf-8")  # file names may be no valid text


def _finding(diagnosis: Diagnosis, finding: Finding) -> str:
    about = finding.about
    head = f"<h3>{about.code} {escape(about.title)}</h3>"
    detail = f"<pre>{escape(finding.detail)}</pre>" if finding.detail else ""
    text = f"<p>{escape(about.meaning)} <b>{escape(about.remedy)}</b></p>"
    items = [
        f"<li><code>{escape(path)}</code> {escape(remark)}</li>"
        for path, remark in list(finding.files.items())[:LISTED]
    ]
    rest = len(finding.files) - len(items)
    more = f"<li>and {rest} more</li>" if rest else ""
    listed = f"<details><summary>{len(finding.files)} files</summary><ul>{''.join(items)}{more}"
    files = f"{listed}</ul></details>" if items else ""
    pictures = _gallery(diagnosis.source, _concerned(diagnosis, finding))
    return f'<section class="{about.severity}">{head}{detail}{text}{files}{pictures}</section>'


def _concerned(diagnosis: Diagnosis, finding: Finding) -> list[Pair]:
    """The first pairs of which the finding names the image or the mask."""
    shown = diagnosis.source.shown
    found = [
        pair
        for pair in diagnosis.pairs
        if shown(pair.image.path) in finding.files
        or (pair.mask is not None and shown(pair.mask.path) in finding.files)
    ]
    return found[:PICTURES]


def _samples(diagnosis: Diagnosis) -> str:
    step = max(1, -(-len(diagnosis.pairs) // SAMPLES))
    pictures = _gallery(diagnosis.source, diagnosis.pairs[::step])
    return f"<h2>A sample</h2>{pictures}" if pictures else ""


def _gallery(source: Source, pairs: Sequence[Pair]) -> str:
    figures = [_figure(source, pair) for pair in pairs]
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _figure(source: Source, pair: Pair) -> str:
    caption = escape(source.shown(pair.image.path))
    picture = thumbnail(source, pair)
    if picture is None:
        return f"<figure><p>cannot be shown</p><figcaption>{caption}</figcaption></figure>"
    content = base64.b64encode(png(picture)).decode("ascii")
    image = f'<img alt="{caption}" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def thumbnail(source: Source, pair: Pair) -> NDArray[np.uint8] | None:
    """The image beside the image under its mask, uint8 HxWx3, as far as both can be decoded."""
    image = _image(source, pair)
    if image is None:
        return None
    height, width = image.shape[:2]
    mask = _mask(source, pair, (height, width))
    if mask is None:
        return image
    mixed = ((image.astype(np.uint16) + mask) // 2).astype(np.uint8)
    gap = np.full((height, 4, 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, mixed], axis=1)


def _image(source: Source, pair: Pair) -> NDArray[np.uint8] | None:
    try:
        picture = Image.fromarray(as_rgb(read_image(pair.image.path, source.dataset)))
    except InputError:
        return None
    picture.thumbnail((LONGEST, LONGEST))
    return np.array(picture, dtype=np.uint8)


def _mask(source: Source, pair: Pair, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The mask in the colours of its classes at (height, width) `size`."""
    if pair.mask is None:
        return None
    try:
        ids = read_source_ids(pair.mask.path, source.dataset)
    except InputError:
        return None
    rows = np.arange(size[0]) * ids.shape[0] // size[0]
    columns = np.arange(size[1]) * ids.shape[1] // size[1]
    values, places = np.unique(ids[np.ix_(rows, columns)], return_inverse=True)
    colours = [_colour(source, int(value)) for value in values]
    coloured: NDArray[np.uint8] = np.array(colours, dtype=np.uint8)[places.reshape(size)]
    return coloured


def _colour(source: Source, value: int) -> Colour:
    train_id = source.id_map.get(value)
    if train_id is None:
        return STRANGE
    return IGNORE_COLOUR if train_id == IGNORE else source.palette[train_id]


def _classes(diagnosis: Diagnosis) -> str:
    """A bar for the share of each class in each split."""
    source, pixels = diagnosis.source, diagnosis.facts["pixels"]
    if not pixels:
        return ""
    rows = []
    for index, name in enumerate(source.classes):
        colour = source.palette[index]
        swatch = f'<i class="swatch" style="background:rgb{colour}"></i>'
        cells = "".join(_bar(counts[index], sum(counts), colour) for counts in pixels.values())
        rows.append(f'<tr><th scope="row">{swatch}{escape(name)}</th>{cells}</tr>')
    heads = "".join(f"<th>{escape(split)}</th>" for split in pixels)
    return f"<h2>Share of pixels</h2><table><tr><th></th>{heads}</tr>{_join(rows)}</table>"


def _bar(count: int, total: int, colour: tuple[int, int, int]) -> str:
    percent = 100 * count / total if total else 0.0
    style = f"width:{percent:.2f}%;background:rgb{colour}"
    return f'<td>{percent:.2f} %<div class="bar"><i style="{style}"></i></div></td>'


def _join(parts: Iterable[str]) -> str:
    return "\n".join(parts)


_STYLE = """
:root { color-scheme: light dark; --ink: #20242a; --soft: #66707c; --line: #d8dde3;
  --paper: #fff; --panel: #f3f5f8; --error: #c22f2f; --warning: #b7791f; --note: #2b6cb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9ee; --soft: #9aa4b0; --line: #373e47;
  --paper: #15181c; --panel: #1f242a; --error: #f07070; --warning: #e0b050; --note: #6aa8e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
section { background: var(--panel); border-left: .3rem solid var(--line); border-radius: .4rem;
  margin: .8rem 0; padding: .8rem 1rem; }
.error { border-color: var(--error); } .warning { border-color: var(--warning); }
.note { border-color: var(--note); }
p { margin: .3rem 0; } pre { white-space: pre-wrap; margin: .3rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: .8rem; margin-top: .6rem; }
figure { margin: 0; } img { max-width: 100%; border-radius: .3rem; }
figcaption { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
td { font-variant-numeric: tabular-nums; font-size: .9rem; }
.bar { background: var(--line); border-radius: .2rem; height: .5rem; }
.bar i { display: block; border-radius: .2rem; height: 100%; }
.swatch { border: 1px solid var(--soft); border-radius: .15rem; display: inline-block;
  height: .8rem; margin-right: .5rem; width: .8rem; }
"""
