"""The tables in docs/ that are generated: each from the table in the code that the work reads.

A page holds a table between two lines, `<!-- table NAME -->` and `<!-- end of table NAME -->`.
`zoo check docs` compares, `zoo check docs --write` writes. A new table is one row in `TABLES`.
The JSON schema of a model folder, docs/folder.schema.json, is kept in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of, read_json, write_text
from zoo.data.dataset import IGNORE
from zoo.data.doctor.codes import CODES
from zoo.data.formats.trees import TREES, Tree
from zoo.exporting import table as exports
from zoo.exporting.formats import FORMATS
from zoo.hub.config import json_schema, write_json_schema
from zoo.inference.outputs import OUTPUTS
from zoo.records.metrics import METRICS
from zoo.records.record import Record, read_records
from zoo.registry.decoders import DECODERS, defaults
from zoo.registry.load import registry_file
from zoo.registry.losses import LOSSES
from zoo.registry.optimizers import OPTIMIZER_ROWS, Arguments

Cells = Sequence[Sequence[str]]
SPEED = "benchmarks/speed"
INFERENCE, INT8 = f"{SPEED}/inference.json", f"{SPEED}/int8_camvid.json"
RUNNERS = {
    "smp fp32": "SMP, fp32",
    "torch bf16": "`torch`, bf16",
    "torch fp32": "`torch`, fp32",
    "onnxruntime fp32": "`onnxruntime`, fp32",
    "openvino fp32": "`openvino`, fp32",
    "openvino bf16": "`openvino`, bf16",
    "onnxruntime int8": "`onnxruntime`, int8",
    "openvino int8": "`openvino`, int8",
}
"""What the benchmark of inference times, and the columns of its table."""


class DocTable(NamedTuple):
    """One generated table: its page in docs/, the file that it is made of, heads and rows."""

    page: str
    source: str
    heads: Sequence[str]
    rows: Callable[[], Cells]


def _metrics() -> Cells:
    rows = []
    for metric in METRICS:
        shown = {
            "record": metric.stored,
            "leaderboard": metric.leaderboard,
            "report": metric.report,
            "model card": metric.hub is not None,
        }
        places = ", ".join(place for place, is_shown in shown.items() if is_shown)
        texts = metric.title, metric.formula, metric.better, metric.undefined
        rows.append([f"`{metric.key}`", *texts, places])
    return rows


def _formats() -> Cells:
    rows = []
    for tree in TREES.values():
        # The folders of the first split, and of the others only where they add something.
        folders = dict.fromkeys(
            f"`{path}`"
            for part in tree.splits.values()
            for path in (part.images, part.masks, part.names)
            if path is not None
        )
        layout = ", ".join(folders)
        if tree.inner:
            inner = " or ".join(f"`{folder}`" for folder in tree.inner)
            layout += f"; PATH may also be the folder above {inner}"
        splits = ", ".join(
            name if part.masks is not None else f"{name} (images only)"
            for name, part in tree.splits.items()
        )
        ignored = "by colour" if tree.decoder == "colours" else _ignored(tree)
        rows.append([f"`{tree.name}`", layout, str(len(tree.classes)), ignored, splits])
    return rows


def _ignored(tree: Tree) -> str:
    """The ids of masks that are ignored, runs of them as `0 to 6`."""
    ids = sorted(id_ for id_, to in (tree.id_map or {}).items() if to == IGNORE)
    runs: list[list[int]] = []
    for id_ in ids:
        if runs and runs[-1][-1] == id_ - 1:
            runs[-1].append(id_)
        else:
            runs.append([id_])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _codes() -> Cells:
    return [
        [code.code, code.severity, code.title, "yes" if code.fixable else ""]
        for code in CODES.values()
    ]


def _decoders() -> Cells:
    return [
        [
            f"`{name}`",
            row.title,
            row.paper,
            f"SMP's `{row.smp}`" if row.smp else "custom head",
            ", ".join(f"`{key}` {json.dumps(value)}" for key, value in defaults(name).items()),
        ]
        for name, row in DECODERS.items()
    ]


def _losses() -> Cells:
    return [
        [
            f"`{loss.name}`",
            loss.title,
            ", ".join(f"`{option.key}` {_value(option.default)}" for option in loss.options),
            "mask queries" if loss.reads == "queries" else "pixels",
            "" if loss.paper is None else f"arXiv {loss.paper}",
        ]
        for loss in LOSSES.values()
    ]


def _loss_options() -> Cells:
    rows = []
    for loss in LOSSES.values():
        for option in loss.options:
            bounds = {
                "above": option.above,
                "from": option.at_least,
                "below": option.below,
                "up to": option.at_most,
            }
            allowed = ", ".join(f"{word} {x:g}" for word, x in bounds.items() if x is not None)
            if option.default is None:
                allowed += ", or `null`: none"
            meaning = f"{option.meaning}, for `{loss.name}`"
            rows.append([f"`{option.key}`", meaning, allowed, f"`{_value(option.default)}`"])
    return rows


def _optimizers() -> Cells:
    def written(arguments: Arguments) -> str:
        return ", ".join(f"`{key}` {json.dumps(value)}" for key, value in arguments.items())

    rows = []
    for row in OPTIMIZER_ROWS:
        names = ", ".join(
            f"`{name}`" + (f" ({written(changed)})" if changed else "")
            for name, changed in row.names.items()
        )
        momentum = "yes" if row.momentum else ""
        rate = "" if row.lr is None else f"{row.lr:g}"
        rows.append([names, row.title, written(row.arguments), momentum, rate])
    return rows


def _outputs() -> Cells:
    return [
        [
            f"`{kind}`",
            f"`{output.folder}/NAME{output.suffix}`",
            output.meaning,
            "rasterio (`segmentation-zoo[geo]`)" if output.module else "",
        ]
        for kind, output in OUTPUTS.items()
    ]


def _int8() -> Cells:
    rows = []
    for row in _result(INT8).get("rows", []):
        rows.append(
            [
                f"`{row['model']}`",
                FORMATS[row["format"]].title,
                f"{100 * row['miou_fp32']:.2f} %",
                f"{100 * row['miou_int8']:.2f} %",
                f"{100 * (row['miou_int8'] - row['miou_fp32']):+.2f}",
                f"{1000 / row['ms_fp32']:.1f}",
                f"{1000 / row['ms_int8']:.1f}",
                f"{row['times_fp32']:.2f}",
                f"{row['bytes_fp32'] / 1e6:.1f}, {row['bytes_int8'] / 1e6:.1f}",
            ]
        )
    return rows


def _result(file: str) -> dict[str, Any]:
    """A result file of this checkout; empty where it was not measured."""
    path = registry_file().parent / file
    return read_json(path) if path.is_file() else {}


def _inference() -> Cells:
    found, rows = _result(INFERENCE), []
    for model, figures in found.get("models", {}).items():
        times, ratios = figures["ms_median"], figures["against_smp_median"]
        cells = [
            f"{times[key]:.0f} ms" + ("" if key == "smp fp32" else f", {ratios[key]:.1f}x")
            if key in times
            else "-"
            for key in RUNNERS
        ]
        rows.append([f"`{model}`", *cells])
    if agreement := found.get("agreement"):
        equal = agreement["equal_argmax"]
        shares = [f"{100 * equal[key]:.2f} %" if key in equal else "" for key in RUNNERS]
        label = f"equal pixels, `{agreement['model']}` trained on {agreement['data']}"
        rows.append([label, *shares])
    return [*rows, ["machine", found.get("device", "none"), *[""] * (len(RUNNERS) - 1)]]


def _predicting() -> Cells:
    """What predicting a folder and a large TIFF took, where it was measured."""
    rows = []
    if (found := _result(f"{SPEED}/predict_folder.json").get("predict_folder")) is not None:
        height, width = found["size"]
        share = f"{100 * found['fraction']:.1f} % of the network's own"
        first, last = found["rss_100_mb"], found["rss_end_mb"]
        rows.append([
            f"{found['images']:,} images of {height}x{width} to {found['save']} PNGs",
            f"`{found['model']}`, {found['precision']}",
            f"{found['images_per_s']:.1f} images/s, {share}",
            f"{first:,.0f} MB after 100 images, {last:,.0f} MB at the end",
        ])  # fmt: skip
    if (found := _result(f"{SPEED}/large_tiff.json").get("large_tiff")) is not None:
        rows.append([
            f"a tiled TIFF of {found['side']:,} x {found['side']:,} pixels", f"`{found['model']}`",
            f"{found['seconds']:.0f} s, {found['megapixels_per_s']:.1f} megapixels/s",
            f"{found['peak_gib']:.2f} GiB at most",
        ])  # fmt: skip
    return rows


def _tta() -> Cells:
    """The records of models that were also scored with test-time augmentation."""
    found: dict[str, dict[str, Record]] = {}
    for record in read_records(registry_file().parent / "benchmarks" / "results"):
        differing = {"tta", "metrics", "confusion", "image_counts", "record_hash", "date", "commit"}
        own = record.model_dump(mode="json", exclude={*differing, "eval_seconds", "env"})
        found.setdefault(hash_of(own), {})[record.tta] = record
    rows = []
    for runs in found.values():
        if "none" not in runs or len(runs) < 2:
            continue
        plain = runs["none"].metrics.miou
        for tta, record in sorted(runs.items(), key=lambda run: (run[0] != "none", run[0])):
            miou = record.metrics.miou
            gain = "" if tta == "none" else f"{100 * (miou - plain):+.2f}"
            rows.append(
                [f"`{record.model}`", f"{record.dataset}, {record.split}", f"`{tta}`",
                 f"{100 * miou:.2f} %", gain]
            )  # fmt: skip
    return rows


def _value(value: float | None) -> str:
    return "null" if value is None else str(value)


TABLES: dict[str, DocTable] = {
    "metrics": DocTable(
        "metrics.md",
        "zoo/records/metrics.py",
        ("key", "name", "formula", "better", "undefined (`null`) where", "shown in"),
        _metrics,
    ),
    "formats": DocTable(
        "formats.md",
        "zoo/data/formats/trees.py",
        ("format", "files below PATH", "classes", "ignored ids", "splits"),
        _formats,
    ),
    "decoders": DocTable(
        "decoders.md",
        "zoo/registry/decoders.py",
        ("name", "decoder", "paper", "built by", "options and defaults"),
        _decoders,
    ),
    "losses": DocTable(
        "losses.md",
        "zoo/registry/losses.py",
        ("name", "loss", "options and defaults", "reads", "paper"),
        _losses,
    ),
    "loss_options": DocTable(
        "recipes.md",
        "zoo/registry/losses.py",
        ("key", "unit", "allowed", "default"),
        _loss_options,
    ),
    "optimizers": DocTable(
        "recipes.md",
        "zoo/registry/optimizers.py",
        ("name", "optimizer", "own arguments and defaults", "`momentum`", "default `lr` in timm"),
        _optimizers,
    ),
    "outputs": DocTable(
        "predict.md",
        "zoo/inference/outputs.py",
        ("`--save`", "file below `--out`", "what it holds", "needs"),
        _outputs,
    ),
    "exports": DocTable(
        "export.md",
        f"zoo/exporting/{exports.TABLE_FILE}",
        ("decoder", *exports.FAMILIES),
        exports.matrix,
    ),
    "export_reasons": DocTable(
        "export.md",
        f"zoo/exporting/{exports.TABLE_FILE}",
        ("encoder", "decoders", "format", "right with", "what fails with others (the first)"),
        exports.reasons,
    ),
    "int8": DocTable(
        "export.md",
        INT8,
        (
            "model",
            "file",
            "mIoU of fp32",
            "mIoU of int8",
            "difference",
            "images/s in fp32",
            "images/s in int8",
            "times as fast",
            "MB",
        ),
        _int8,
    ),
    "predicting": DocTable(
        "predict.md",
        f"{SPEED}/predict_folder.json and large_tiff.json",
        ("what", "model", "speed", "resident memory"),
        _predicting,
    ),
    "tta": DocTable(
        "predict.md",
        "the records in benchmarks/results",
        ("model", "data", "`--tta`", "mIoU", "gain, points"),
        _tta,
    ),
    "inference": DocTable(
        "predict.md",
        INFERENCE,
        ("model", *RUNNERS.values()),
        _inference,
    ),
    "codes": DocTable(
        "doctor.md",
        "zoo/data/doctor/codes.py",
        ("code", "severity", "finding", "`--fix`"),
        _codes,
    ),
}


def check_docs(docs: Path | None = None, *, write: bool = False) -> list[Path]:
    """The files of `docs` that differ from the code, brought up to date by `write`.

    Raises InputError where there is no such folder, and for a page without the marks of its table.
    """
    docs = docs or registry_file().parent / "docs"
    if not docs.is_dir():
        raise InputError(f"{docs} does not exist. Run this in a checkout of zoo.")
    changed, problems = [], []
    for page in dict.fromkeys(table.page for table in TABLES.values()):
        path = docs / page
        before = path.read_text(encoding="utf-8")
        after = before
        for name, table in TABLES.items():
            if table.page == page:
                opening, closing = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
                head, found, rest = after.partition(f"{opening}\n")
                _, found_end, tail = rest.partition(closing)
                if not (found and found_end):
                    problems.append(f"{page}: write the two lines {opening} and {closing}")
                    continue
                after = f"{head}{opening}\n{_markdown(table)}\n{closing}{tail}"
        if after != before:
            changed.append(path)
            if write:
                write_text(path, after)
    schema = docs / "folder.schema.json"
    if not schema.is_file() or read_json(schema) != json_schema():
        changed.append(schema)
        if write:
            write_json_schema(schema)
    if problems:
        raise InputError(join_problems("These pages have no place for their tables:", problems))
    return changed


def _markdown(table: DocTable) -> str:
    note = f"<!-- generated from {table.source} by `zoo check docs --write`; do not edit -->"
    lines = [table.heads, ["---"] * len(table.heads), *table.rows()]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    rows = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in cells]
    return "\n".join(["", note, "", *rows, ""])
