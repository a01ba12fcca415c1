"""README.md of a model folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.models.spec import ModelSpec

SPECIAL = "\\`*_{}[]<>()#+!|~"


def escape(text: object) -> str:
    """`text` on one line with every character that Markdown or HTML would act on neutralised."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in SPECIAL else c for c in line).replace("&", "&amp;")


def card(spec: ModelSpec, training: dict[str, Any] | None, metrics: dict[str, Any] | None) -> str:
    """The card of a model as Markdown with its YAML header."""
    sections = [_header(), _what(spec), _numbers(metrics), _training(training), _use()]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header() -> str:
    return (
        "---\nlibrary_name: segmentation-zoo\npipeline_tag: image-segmentation\n"
        "tags:\n- semantic-segmentation\n---"
    )


def _what(spec: ModelSpec) -> str:
    rows = [
        ("decoder", spec.decoder),
        ("encoder", spec.encoder),
        ("encoder weights", spec.encoder_weights or "random"),
        ("encoder licence", spec.licence or "not stated"),
        ("classes", f"{len(spec.classes)}: {', '.join(spec.classes)}"),
        ("input", f"{spec.in_chans} channels, pixels / 255, mean {spec.mean}, std {spec.std}"),
    ]
    table = "\n".join(f"| {key} | {escape(value)} |" for key, value in rows)
    return f"# {escape(spec.name)}\n\n| | |\n|---|---|\n{table}"


def _numbers(metrics: dict[str, Any] | None) -> str:
    if not metrics:
        return ""
    per_class = metrics.get("iou_per_class", {})
    lines = [f"| {escape(name)} | {_percent(value)} |" for name, value in per_class.items()]
    head = (
        f"## Results\n\nmIoU {_percent(metrics['miou'])} on {escape(metrics.get('dataset'))}, "
        f"split {escape(metrics.get('split'))}.\n\n| class | IoU |\n|---|---|"
    )
    return "\n".join([head, *lines])


def _training(training: dict[str, Any] | None) -> str:
    if not training:
        return ""
    keys = ("dataset", "recipe", "recipe_hash", "seed", "steps", "train_seconds", "precision")
    rows = [f"| {key} | {escape(training[key])} |" for key in keys if key in training]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *rows])


def _use() -> str:
    return (
        "## Use\n\n```python\nimport zoo\n\n"
        'model = zoo.create("path/to/this/folder")\n'
        'zoo.predict(model, "image.png", out="predictions")\n```'
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
